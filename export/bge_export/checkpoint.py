"""A checkpoint's folder: which model it holds, and how its texts become vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_export import heads
from bge_export.catalog import Entry
from bge_export.checkpoint_files import model_folder, sentence_settings
from bge_export.checkpoint_tokenizer import keeps_case
from bge_export.config import quoted, read_json
from bge_export.pooling import Pooling
from bge_onnx.errors import CheckpointError
from bge_onnx.json_file import shortened

POOLING_FILE = "1_Pooling/config.json"

# Both spellings of sentence-transformers: up to 4 a flag per mode, from 5 on one `pooling_mode`.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
POOLING_MODES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last")

# Of sentence_bert_config.json, in both spellings: what may stand there without a change of the vectors.
HARMLESS_ARGUMENTS = {
    ("config_args", "config_kwargs"): {"use_cache", "attn_implementation"},
    ("model_args", "model_kwargs"): {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer"},
    ("tokenizer_args", "processor_kwargs"): {"model_max_length", "padding_side", "use_fast"},
}


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

    pooling: Pooling
    normalize: bool
    max_tokens: int
    prompts: dict[str, str]
    lower_cased: bool  # lower-case the text before the tokenizer sees it
    heads: tuple[str, ...] = ("dense",)


def read_recipe(folder: Path, entry: Entry | None, position_limit: int, options: Options) -> Recipe:
    """The recipe of a checkpoint: the sentence-transformers files decide, then the catalog, then `options`.

    position_limit  tokens that the model has positions for

    Raises CheckpointError: files that ask for what we do not compute, that contradict the catalog or each other, or
    that leave something open.
    """
    pooling, normalize = _modules(folder)
    return Recipe(
        pooling=_decide_pooling(folder, pooling, entry, options),
        normalize=normalize if normalize is not None else (entry.normalize if entry else True),
        max_tokens=_max_tokens(folder, entry, position_limit, options),
        prompts=_prompts(folder, entry, options),
        lower_cased=_lower_cased(folder, entry, options),
        heads=heads.decide(folder, options.heads or (entry.heads if entry else None)),
    )


def _modules(folder: Path) -> tuple[Pooling | None, bool | None]:
    """Pooling and normalisation that `modules.json` asks for; None where there is no such file."""
    if not (folder / "modules.json").is_file():
        return _pooling(folder / POOLING_FILE), None
    modules = read_json(folder / "modules.json", list)
    kinds = [str(module.get("type") if isinstance(module, dict) else None).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{folder / 'modules.json'}: expected the modules Transformer, Pooling and perhaps Normalize, found "
            f"{', '.join(kinds)}.\n    Other modules change the vectors and are not supported."
        )
    return _pooling(folder / modules[1].get("path", "1_Pooling") / "config.json"), kinds[-1] == "Normalize"


def _pooling(path: Path) -> Pooling | None:
    """The pooling that a Pooling module's file asks for; None where there is no such file."""
    if not path.is_file():
        return None
    record = read_json(path)
    if "pooling_mode" in record:
        modes = record["pooling_mode"]
        found = [POOLING_MODES.get(str(mode), str(mode)) for mode in (modes if isinstance(modes, list) else [modes])]
    else:
        found = [mode for flag, mode in POOLING_FLAGS.items() if record.get(flag)]
    if len(found) != 1 or found[0] not in POOLINGS or record.get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{path}: expected one pooling mode, cls, mean or lasttoken, prompt included, found "
            f"{' + '.join(found) or 'none'}{'' if record.get('include_prompt', True) else ', prompt left out'}.\n"
            "    Other pooling is not supported."
        )
    pooling: Pooling = found[0]
    return pooling


def _decide_pooling(folder: Path, pooling: Pooling | None, entry: Entry | None, options: Options) -> Pooling:
    wanted = options.pooling or (entry.pooling if entry else None)
    if pooling and wanted and pooling != wanted:
        raise CheckpointError(
            f"{folder / POOLING_FILE}: expected pooling {wanted} "
            f"({'as --pooling says' if options.pooling else f'as {entry.repository} has it' if entry else ''}), "
            f"found {pooling}.\n    "
            f"{'Leave --pooling out' if options.pooling else 'Give MODEL another name than a known one'}, and that of "
            "the file counts."
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
    arguments = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
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
    """Raise CheckpointError: the Transformer module's file sets what is not read from there, and may change vectors."""
    for key, harmless in ((key, harmless) for keys, harmless in HARMLESS_ARGUMENTS.items() for key in keys):
        arguments = settings.get(key) or {}
        others = sorted(set(arguments) - harmless) if isinstance(arguments, dict) else [quoted(arguments)]
        if others:
            raise CheckpointError(
                f"{path}: expected {key} with nothing but {', '.join(sorted(harmless))}, found "
                f"{shortened(', '.join(others))}.\n    Put it into config.json or tokenizer_config.json instead."
            )


def _prompts(folder: Path, entry: Entry | None, options: Options) -> dict[str, str]:
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
    query, passage = stored.get("query") or (entry.query_prompt if entry else ""), stored.get("document") or ""
    prompts = {
        "query": query if options.query_prompt is None else options.query_prompt,
        "passage": passage if options.passage_prompt is None else options.passage_prompt,
    }
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
