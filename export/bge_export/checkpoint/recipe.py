"""A checkpoint's folder: which model it holds, and how its texts become vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bge_export.checkpoint import cross_encoder, heads, word_logit
from bge_export.checkpoint.catalog import Entry
from bge_export.checkpoint.config import quoted, read_json
from bge_export.checkpoint.files import model_folder, sentence_settings
from bge_export.checkpoint.modules import POOLING_FILE, Modules, Step, read_modules
from bge_export.checkpoint.tokenizer import keeps_case
from bge_export.graph.pooling import Pooling
from bge_onnx.bundle.heads import FIRST, SCORE
from bge_onnx.bundle.prompts import TASK
from bge_onnx.bundle.records import Similarity
from bge_onnx.errors import CheckpointError
from bge_onnx.files.json_file import shortened

# Arguments in sentence_bert_config.json, in both spellings, that do not change the vectors.
HARMLESS_ARGUMENTS = {
    ("config_args", "config_kwargs"): {"use_cache", "attn_implementation"},
    ("model_args", "model_kwargs"): {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer"},
    ("tokenizer_args", "processor_kwargs"): {"model_max_length", "padding_side", "use_fast"},
}


# The other keys of that file with the values that sentence-transformers 6.2 has for a text encoder's token states.
PLAIN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "unpad_inputs": (True, False),
}
READ_SETTINGS = ("max_seq_length", "do_lower_case")


READERS: tuple[Callable[[Path], Modules | None], ...] = (cross_encoder.read, read_modules)
"""Each reads what follows a transformer. The first that recognises a folder's files decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user decides where a folder's files do not; None leaves it to them."""

    pooling: Pooling | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_tokens: int | None = None
    lower_case: bool | None = None
    heads: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a checkpoint's texts become vectors."""

    pooling: str  # modes with + between
    normalize: bool
    max_tokens: int
    prompts: dict[str, str]
    lower_cased: bool  # lower-case the text before the tokenizer sees it
    heads: tuple[str, ...] = ("dense",)
    steps: tuple[Step, ...] = ()  # of the pooled vector, before it is normalised
    truncate_dim: int | None = None  # components that vectors are cut to, where a caller says nothing
    similarity: Similarity = "cosine"


def modules_of(folder: Path, asked: Sequence[str] | None = None) -> Modules:
    """What stands behind a checkpoint's transformer. Raises CheckpointError: what we do not compute.

    asked  heads. The score of a language model is no head of its files: it has to be asked for
    """
    modules = next(modules for read in READERS if (modules := read(folder)))
    return word_logit.read(folder) if modules.head == FIRST and tuple(asked or ()) == (SCORE,) else modules


def read_recipe(folder: Path, entry: Entry | None, position_limit: int, options: Options) -> Recipe:
    """The recipe of a checkpoint: the sentence-transformers files decide, then the catalog, then `options`.

    position_limit  tokens that the model has positions for

    Raises CheckpointError: files that ask for what we do not compute, that contradict the catalog or each other, or
    that leave something open.
    """
    asked = options.heads or (entry.heads if entry else None)
    modules, settings = modules_of(folder, asked), _settings(folder)
    return Recipe(
        pooling=_decide_pooling(folder, modules.pooling, entry, options),
        steps=modules.steps,
        normalize=modules.normalize if modules.normalize is not None else (entry.normalize if entry else True),
        truncate_dim=settings.truncate_dim,
        similarity=settings.similarity,
        max_tokens=_max_tokens(folder, entry, position_limit - modules.beyond, options),
        prompts={**modules.prompts, **_prompts(folder, entry, options, modules)},
        lower_cased=_lower_cased(folder, entry, options),
        heads=heads.decide(folder, asked) if modules.head == FIRST else (modules.head,),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What of config_sentence_transformers.json stands beside the prompts."""

    truncate_dim: int | None
    similarity: Similarity


def _settings(folder: Path) -> _Settings:
    path = folder / "config_sentence_transformers.json"
    record = read_json(path) if path.is_file() else {}
    dim: Any = record.get("truncate_dim")
    similarity: Any = record.get("similarity_fn_name") or "cosine"
    if dim is not None and (type(dim) is not int or dim < 1):
        raise CheckpointError(f"{path}: expected truncate_dim to be a number of components, found {quoted(dim)}.")
    if similarity not in get_args(Similarity):
        raise CheckpointError(
            f"{path}: expected similarity_fn_name out of {', '.join(get_args(Similarity))}, found {quoted(similarity)}."
        )
    return _Settings(truncate_dim=dim, similarity=similarity)


def _decide_pooling(folder: Path, pooling: str | None, entry: Entry | None, options: Options) -> str:
    wanted = options.pooling or (entry.pooling if entry else None)
    if pooling and wanted and pooling != wanted:
        raise CheckpointError(
            f"{folder / POOLING_FILE}: expected pooling {wanted} "
            f"({'as --pooling says' if options.pooling else f'as {entry.repository} has it' if entry else ''}), "
            f"found {pooling}.\n    "
            f"{'Leave --pooling out' if options.pooling else 'Give MODEL a name that is not a known one'}. Then the "
            "file's pooling counts."
        )
    decided = pooling or wanted
    if decided is None:
        raise CheckpointError(
            f"{folder}: expected {POOLING_FILE}, which says how token states become a vector, found none.\n"
            "    Add --pooling cls (as all BGE models do), --pooling mean or --pooling last."
        )
    return decided


def _max_tokens(folder: Path, entry: Entry | None, positions: int, options: Options) -> int:
    """Tokens that texts are cut to, as sentence-transformers decides it, but never more than there are positions."""
    name, settings = sentence_settings(folder)
    _require_plain(folder / name, settings)
    arguments = settings.get("tokenizer_args") or settings.get("processor_kwargs") or {}
    length = arguments.get("model_max_length", settings.get("max_seq_length"))
    if length is None and entry:
        name, length = "the catalog", entry.max_tokens
    path = model_folder(folder) / "tokenizer_config.json"
    if length is None and path.is_file():
        name, length = path.name, read_json(path).get("model_max_length")  # 1e30 where it has no limit
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length >= 0):
        raise CheckpointError(
            f"{folder}: expected {name} to give the maximum of tokens as a number, found {quoted(length)}.\n"
            "    Mend that file."
        )
    decided = options.max_tokens or int(min(positions, length or positions))
    if not 3 <= decided <= positions:
        raise CheckpointError(
            f"{folder}: expected a maximum of 3 to {positions} tokens, found {decided}.\n    Set --max-tokens."
        )
    return decided


def _require_plain(path: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError: the Transformer module's file sets what is not read there and may change vectors."""
    for key, harmless in ((key, harmless) for keys, harmless in HARMLESS_ARGUMENTS.items() for key in keys):
        arguments = settings.get(key) or {}
        others = sorted(set(arguments) - harmless) if isinstance(arguments, dict) else [quoted(arguments)]
        if others:
            raise CheckpointError(
                f"{path}: expected {key} with nothing but {', '.join(sorted(harmless))}, found "
                f"{shortened(', '.join(others))}.\n    Put it into config.json or tokenizer_config.json instead."
            )
    for key in sorted(settings.keys() - {*READ_SETTINGS, *(key for keys in HARMLESS_ARGUMENTS for key in keys)}):
        value, plain = settings[key], PLAIN_SETTINGS.get(key, ())
        if value not in (None, {}, *plain):
            raise CheckpointError(
                f"{path}: expected no {key}{f', or {quoted(plain[0])}' if plain else ''}, found {quoted(value)}.\n"
                "    It may change vectors, and is not supported."
            )


def _prompts(folder: Path, entry: Entry | None, options: Options, modules: Modules) -> dict[str, str]:
    """Texts in front of queries and passages, as sentence-transformers' encode_query and encode_document add them.

    These take the prompts named query and document, and none where there is no such prompt. `default_prompt_name` is
    for `encode` alone, and a prompt named passage for whoever asks for it by name.
    """
    path = folder / "config_sentence_transformers.json"
    record = read_json(path) if path.is_file() else {}
    stored, default = record.get("prompts") or {}, record.get("default_prompt_name")
    if not isinstance(stored, dict) or not all(isinstance(prompt, str | None) for prompt in stored.values()):
        raise CheckpointError(
            f"{path}: expected prompts to be texts by their names, found {quoted(stored)}.\n    Mend that file."
        )
    if default is not None and default not in (known := [*{**stored, "query": "", "document": ""}]):
        raise CheckpointError(
            f"{path}: expected default_prompt_name to be one of its prompts ({shortened(', '.join(known))}), found "
            f"{quoted(default)}.\n    Set it to null, or add that prompt."
        )
    query = stored.get("query") or modules.prompts.get("query") or (entry.query_prompt if entry else "")
    passage = stored.get("document") or modules.prompts.get("passage") or (entry.passage_prompt if entry else "")
    prompts = {
        "query": query if options.query_prompt is None else options.query_prompt,
        "passage": passage if options.passage_prompt is None else options.passage_prompt,
    }
    if entry and entry.template:
        prompts[TASK] = entry.template
    for kind, prompt in prompts.items():
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise CheckpointError(f"{path}: expected whole characters in the {kind} prompt, found {quoted(prompt)}.")
    return prompts


def _lower_cased(folder: Path, entry: Entry | None, options: Options) -> bool:
    """Whose lower-casing counts. sentence-transformers lower-cases first where `sentence_bert_config.json` says so.

    FlagEmbedding never looks at that file, so for the published models the tokenizer decides.
    """
    if options.lower_case is not None:
        return options.lower_case
    name, settings = sentence_settings(folder)
    if entry or not settings.get("do_lower_case") or not keeps_case(folder):
        return False
    raise CheckpointError(
        f"{folder}: expected one answer, found two: {name} says do_lower_case true, the tokenizer "
        "keeps case.\n"
        "    sentence-transformers lower-cases, FlagEmbedding does not: choose what the model was trained with, "
        "--lower-case or --keep-case."
    )
