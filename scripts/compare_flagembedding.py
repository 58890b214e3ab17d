"""Compare bge_onnx.flag with FlagEmbedding: python scripts/compare_flagembedding.py [--full] [--head-files DIR]."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import FlagEmbedding
import numpy as np
import torch
from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING

from bge_export.checkpoint import catalog, heads
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx import Embedder, flag
from bge_onnx.bundle.graph_names import SECOND
from bge_onnx.embed.prefix import Prefix
from bge_onnx.text.pair_tokens import PairTokens

LIMIT = 2e-5
POOLINGS = {"last_token": "last", "cls": "cls", "mean": "mean"}
TEXTS = [
    "What is BGE M3?",
    "",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "混合 English 和中文，检索 12345！",
    "吾輩は猫である。名前はまだ無い。",
    "<pad> and </s> inside a text",
    "one two three four five six seven eight nine ten " * 60,
]
PAIRS = [(query, passage) for query in TEXTS[:3] for passage in TEXTS[1:6]]
SHRUNK = {"num_hidden_layers": 2, "vocab_size": 12_000}
BERT = {"num_hidden_layers": 2}
DECODER = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "dtype": "float32"}
MISTRAL = {**DECODER, "num_attention_heads": 8, "num_key_value_heads": 2}
GEMMA = {**DECODER, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 12_000}
TASK = "Given a claim, retrieve documents that support or refute the claim."
EXAMPLES = [
    {"instruct": "Given a question, retrieve its answer.", "query": "What is tea?", "response": "A drink."},
    {"query": "What is BM25?", "response": "A ranking function."},
    {"query": "no response"},
]

Call = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""A label, a method's name, its arguments."""

Ids = tuple[int, ...]


def checkpoint(
    folder: Path, model: str, changes: dict[str, Any], head_files: Path | None, tokenizer: Path | None
) -> Path:
    entry = catalog.find(model)
    assert entry
    folder.mkdir()
    config = entry.config | changes
    own = tokenizer if config["model_type"] == "mistral" else None
    random_checkpoint.write(
        folder, config, seed=0, lower_case=entry.lower_case, heads=entry.heads, sentencepiece_model=own
    )
    if head_files and len(entry.heads) > 1:
        heads.copy(head_files, folder)
    return folder


def difference(ours: Any, theirs: Any) -> float:
    """The largest absolute difference of two results of one shape; other keys, lengths or types, or NaN, are infinite.

    Of values above 1 the relative one: scores of vectors that are not normalised are in the thousands.
    """
    if isinstance(theirs, torch.Tensor):
        theirs = np.float32(theirs.item())
    if type(ours) is not type(theirs) and not (isinstance(ours, int | float) and isinstance(theirs, np.number | int)):
        return float("inf")
    if theirs is None or isinstance(theirs, str):
        return 0.0 if ours == theirs else float("inf")
    if isinstance(theirs, dict):
        if list(ours) != list(theirs):
            return float("inf")
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list):
        if len(ours) != len(theirs):
            return float("inf")
        return max((difference(left, right) for left, right in zip(ours, theirs, strict=True)), default=0.0)
    left, right = np.asarray(ours), np.asarray(theirs)
    if left.shape != right.shape or not np.isfinite(left).all():
        return float("inf")
    return float((np.abs(left.astype(np.float64) - right) / np.maximum(1, np.abs(right))).max(initial=0))


def dense_calls() -> Iterator[Call]:
    for method in ("encode", "encode_queries", "encode_corpus"):
        yield f"{method}(list)", method, (TEXTS,), {}
        yield f"{method}(str)", method, (TEXTS[2],), {}
        yield f"{method}(max_length=16)", method, (TEXTS,), {"max_length": 16}
    yield from instructed_calls()


def instructed_calls() -> Iterator[Call]:
    yield "encode(batch_size=2)", "encode", (TEXTS,), {"batch_size": 2}
    yield "encode(instruction)", "encode", (TEXTS,), {"instruction": "Find: ", "instruction_format": "{}<{}>"}


def m3_calls() -> Iterator[Call]:
    for returned in itertools.product((False, True), repeat=3):
        if any(returned):
            names = ("return_dense", "return_sparse", "return_colbert_vecs")
            options = dict(zip(names, returned, strict=True))
            label = "+".join(name for name, one in options.items() if one)
            yield f"encode({label})", "encode", (TEXTS,), options
            yield f"encode(str, {label})", "encode", (TEXTS[3],), options
    everything = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    for method in ("encode_queries", "encode_corpus"):
        yield f"{method}(max_length=16)", method, (TEXTS,), {"max_length": 16, **everything}
    yield from instructed_calls()
    weighted = {"weights_for_different_modes": [0.4, 0.2, 0.4], "max_passage_length": 24}
    for options in ({}, {"batch_size": 4}, {"max_query_length": 5}, weighted):
        yield f"compute_score({options})", "compute_score", (PAIRS,), options
    yield "compute_score(one pair)", "compute_score", (PAIRS[2],), {}
    yield "compute_score([])", "compute_score", ([],), {}
    weights = [{"5": 0.5, "6": 0.25}, {"6": 2.0}]
    yield "compute_lexical_matching_score(dicts)", "compute_lexical_matching_score", tuple(weights), {}
    yield "compute_lexical_matching_score(lists)", "compute_lexical_matching_score", (weights, weights), {}
    yield "convert_id_to_token(list)", "convert_id_to_token", (weights,), {}
    yield "convert_id_to_token(dict)", "convert_id_to_token", (weights[0],), {}
    rows = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    yield "colbert_score", "colbert_score", (rows[0], rows[1, :3]), {}


def reranker_calls() -> Iterator[Call]:
    """Every pair of the texts, empty and over-long ones among them."""
    pairs = list(itertools.product(TEXTS, TEXTS))
    for options in ({}, {"normalize": True}, {"max_length": 40}, {"max_length": 64, "query_max_length": 8}):
        yield f"compute_score({options})", "compute_score", (pairs,), options
    yield "compute_score(one pair)", "compute_score", (PAIRS[2],), {}
    yield "compute_score(batch_size=2)", "compute_score", (pairs[:9],), {"batch_size": 2}


def llm_reranker_calls() -> Iterator[Call]:
    """As `reranker_calls`, and with another prompt."""
    yield from reranker_calls()
    yield "compute_score(prompt)", "compute_score", (PAIRS,), {"prompt": "Does B answer A?", "max_length": 100}


def icl_calls(files: list[list[dict[str, str]]]) -> Callable[[], Iterator[Call]]:
    """Queries zero-shot and behind each of `files`' examples, cut and whole; passages bare."""

    def calls() -> Iterator[Call]:
        for number, examples in enumerate([[], *files]):
            yield f"set_examples({number})", "set_examples", (examples or None,), {}
            yield f"encode_queries(list, examples {number})", "encode_queries", (TEXTS,), {}
            yield f"encode_queries(str, examples {number})", "encode_queries", (TEXTS[3],), {}
            yield f"encode_queries(max_length=32, examples {number})", "encode_queries", (TEXTS,), {"max_length": 32}
        yield "encode_corpus(list)", "encode_corpus", (TEXTS,), {}
        yield "encode_corpus(max_length=16)", "encode_corpus", (TEXTS,), {"max_length": 16}
        yield from instructed_calls()

    return calls


def read_examples(folder: Path | None) -> list[list[dict[str, str]]]:
    """Ours, or those of the .json files of `folder`."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))] if folder else [EXAMPLES]


@contextmanager
def our_texts() -> Iterator[set[Ids]]:
    """The token ids of all texts that ours computes, with what a prefix holds of them."""
    seen: set[Ids] = set()
    run, embed_whole, encode_apart = Embedder.run, Prefix.embed_whole, PairTokens.encode_apart

    def watched_run(self: Embedder, token_ids: Any, wanted: Any, **options: Any) -> Any:
        if options.get("past") is None:
            seen.update(tuple(ids.tolist()) for ids in token_ids)
        return run(self, token_ids, wanted, **options)

    def watched_embed_whole(self: Prefix, token_ids: Any, wanted: Any, **options: Any) -> Any:
        seen.update(tuple(ids.tolist()) for ids in token_ids)
        return embed_whole(self, token_ids, wanted, **options)

    def watched_pairs(self: PairTokens, pairs: Any, **options: Any) -> Any:
        apart = encode_apart(self, pairs, **options)
        seen.update(tuple((np.concatenate(parts) % SECOND).tolist()) for parts in apart)
        return apart

    with (
        patch.object(Embedder, "run", watched_run),
        patch.object(Prefix, "embed_whole", watched_embed_whole),
        patch.object(PairTokens, "encode_apart", watched_pairs),
    ):
        yield seen


@contextmanager
def their_texts(model: torch.nn.Module) -> Iterator[set[Ids]]:
    """The token ids of all texts that theirs computes, without padding."""
    seen: set[Ids] = set()

    def watch(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = named if "input_ids" in named else positional[0]
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        seen.update(tuple(ids[kept].tolist()) for ids, kept in rows)

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    yield seen
    hook.remove()


def compare(title: str, ours: Any, theirs: Any, calls: Callable[[], Iterator[Call]]) -> bool:
    passed = True
    for label, method, arguments, options in calls():
        with our_texts() as our_ids:
            found = getattr(ours, method)(*arguments, **options)
        with their_texts(theirs.model) as their_ids:
            expected = getattr(theirs, method)(*arguments, **options)
        error = difference(found, expected)
        equal = our_ids == their_ids
        passed &= error <= LIMIT and equal
        verdict = "DIFFERS" if error > LIMIT else "ok" if equal else "OTHER TOKENS"
        print(f"{title:40} {label:90} {error:.1e} {len(our_ids):3} texts   {verdict}", flush=True)
    return passed


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"normalize_embeddings": False},
    {"truncate_dim": 128},
    {
        "query_instruction_for_retrieval": "Find: ",
        "query_instruction_format": "{}\\n{}",
        "passage_instruction_for_retrieval": "Passage: ",
        "passage_instruction_format": "{}[{}]",
        "query_max_length": 12,
    },
)


RERANKER_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"normalize": True, "max_length": 48, "query_max_length": 12},
    {
        "query_instruction_for_rerank": "Find: ",
        "query_instruction_format": "{}\\n{}",
        "passage_instruction_for_rerank": "Passage: ",
        "passage_instruction_format": "{}[{}]",
    },
)

ICL_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"query_instruction_for_retrieval": TASK},
    {
        "query_instruction_for_retrieval": TASK,
        "query_instruction_format": "<instruct>{}\\n<query>{}",
        "examples_for_task": EXAMPLES,
        "normalize_embeddings": False,
        "truncate_dim": 64,
        "query_max_length": 40,
    },
)


def systems(examples: list[list[dict[str, str]]]) -> list[tuple[str, str, Any, Any]]:
    """FlagEmbedding's class, the model, what is called, and with which constructor arguments."""
    few_shot = icl_calls(examples)
    return [
        ("BGEM3FlagModel", "bge-m3", m3_calls, OPTIONS),
        ("FlagModel", "bge-small-en-v1.5", dense_calls, OPTIONS),
        ("FlagModel", "bge-m3", dense_calls, OPTIONS),
        ("FlagAutoModel", "bge-small-en-v1.5", dense_calls, OPTIONS),
        ("FlagAutoModel", "bge-m3", m3_calls, OPTIONS),
        ("FlagLLMModel", "bge-multilingual-gemma2", dense_calls, OPTIONS),
        ("FlagAutoModel", "bge-multilingual-gemma2", dense_calls, OPTIONS),
        ("FlagICLModel", "bge-en-icl", few_shot, ICL_OPTIONS[1:]),
        ("FlagAutoModel", "bge-en-icl", few_shot, ICL_OPTIONS[1:2]),
    ]


RERANKERS = [
    ("FlagReranker", "bge-reranker-base", reranker_calls, RERANKER_OPTIONS),
    ("FlagAutoReranker", "bge-reranker-v2-m3", reranker_calls, RERANKER_OPTIONS[:1]),
    ("FlagLLMReranker", "bge-reranker-v2-gemma", llm_reranker_calls, RERANKER_OPTIONS),
    ("FlagAutoReranker", "bge-reranker-v2-gemma", llm_reranker_calls, RERANKER_OPTIONS[:1]),
]


def catalog_agrees() -> bool:
    """Whether FlagEmbedding's table of names has our poolings and templates, where we have the model."""
    passed, left_out = True, []
    for name, theirs in AUTO_EMBEDDER_MAPPING.items():
        entry = catalog.find(name)
        if entry is None:
            left_out.append(name)
            continue
        found = (POOLINGS[theirs.pooling_method.value], theirs.query_instruction_format)
        ours = (entry.pooling, entry.template or "{}{}")
        if found != ours:
            passed = False
            print(f"{name}: FlagEmbedding has {found}, the catalog {ours}   DIFFERS")
    print(f"{len(AUTO_EMBEDDER_MAPPING) - len(left_out)} names have FlagEmbedding's pooling and template.")
    print(f"Not in the catalog: {', '.join(left_out)}")
    return passed


def opened(module: Any, name: str, folder: Path, options: dict[str, Any]) -> Any:
    found = getattr(module, name)
    return (found.from_finetuned if name.startswith("FlagAuto") else found)(str(folder), devices="cpu", **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="bge-m3's true size instead of two layers")
    parser.add_argument("--head-files", type=Path, help="folder with sparse_linear.pt and colbert_linear.pt")
    parser.add_argument("--tokenizer", type=Path, help="Mistral's tokenizer.model, for bge-en-icl")
    parser.add_argument("--examples", type=Path, help="folder of .json files with few-shot examples, for bge-en-icl")
    parser.add_argument("--rerankers", action="store_true", help="these alone, in an environment with transformers 4")
    parser.add_argument("--only", help="models whose names begin so")
    arguments = parser.parse_args()
    passed = catalog_agrees()
    chosen = RERANKERS if arguments.rerankers else systems(read_examples(arguments.examples))
    changes = {
        "bge-small-en-v1.5": BERT,
        "bge-m3": {} if arguments.full else SHRUNK,
        "bge-multilingual-gemma2": GEMMA,
        "bge-en-icl": MISTRAL,
        "bge-reranker-base": SHRUNK,
        "bge-reranker-v2-m3": SHRUNK,
        "bge-reranker-v2-gemma": {
            **GEMMA,
            "num_key_value_heads": 1,
            "hidden_act": "gelu_pytorch_tanh",  # what transformers 5 makes of "gelu"; 4.57 computes its exact form
        },
    }
    if arguments.full:
        chosen = [(name, model, calls, options[:1]) for name, model, calls, options in chosen[:1]]
    with tempfile.TemporaryDirectory(prefix="bge-compare-") as temporary:
        root = Path(temporary)
        (root / "bundles").mkdir()
        for name, model, calls, options in chosen:
            if arguments.only and not model.startswith(arguments.only):
                continue
            if not (root / model).exists():
                folder = checkpoint(root / model, model, changes[model], arguments.head_files, arguments.tokenizer)
                request = Request(model=model, target="cpu-fp32", checkpoint=folder)
                export(request, root / "bundles" / model)
            for option in options:
                ours = opened(flag, name, root / "bundles" / model, option)
                theirs = opened(FlagEmbedding, name, root / model, {**option, "use_fp16": False})
                passed &= compare(f"{name} {model[:9]} {'+'.join(option)[:14]}", ours, theirs, calls)
    print("passed" if passed else "FAILED")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
