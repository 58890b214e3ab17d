"""Ours and PyTorch on a GPU, for `gpu.py`; in one environment, as a GPU machine may have no package index."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]
HEADS = ("dense", "sparse", "colbert")
BATCH_TEXTS = 128
QUERY = "what is a bag of words?"
"""Of every pair that a reranker scores."""
CAUSAL = ("mistral", "gemma2", "qwen2", "qwen3")


def pytorch(folder: Path, *, compiled: bool = False, attention: str = "sdpa", heads: Sequence[str] = ()) -> Embed:
    """PyTorch on a GPU, in float16 or bfloat16: batches by length and padded, as sentence-transformers'.

    With `flash_attention_2` transformers takes the padding out of attention, and the package flash-attn runs it.
    `heads` are computed besides, and copied to the CPU's memory as their users get them.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"  # for a trial of the benchmark itself
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    dtype = torch.bfloat16 if kind in CAUSAL[1:] else torch.float16
    if kind == "gemma2" and attention == "sdpa":
        attention = "eager"  # PyTorch's fused attention has no soft cap, and transformers refuses it
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(device).eval()
    linears = [torch.load(folder / f"{head}_linear.pt", map_location=device) for head in heads]
    if compiled:
        model = torch.compile(model, dynamic=True)

    def last_or_first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if kind in CAUSAL:
            return states[torch.arange(len(states), device=device), mask.sum(dim=1) - 1]
        return states[:, 0]

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        dense = torch.empty(len(texts), model.config.hidden_size, device=device)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(device)
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            for linear in linears:
                torch.nn.functional.linear(states, linear["weight"].to(dtype), linear["bias"].to(dtype)).cpu()
            pooled = last_or_first(states, batch["attention_mask"])
            dense[rows] = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return dense.cpu().numpy()

    return embed


def pytorch_reranker(folder: Path) -> Embed:
    """A cross-encoder in float16 on a GPU, as FlagEmbedding runs it: length-sorted, padded batches of pairs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"  # for a trial of the benchmark itself
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16).to(device).eval()

    @torch.inference_mode()
    def score(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        scores = torch.empty(len(texts), device=device)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            passages = [texts[row] for row in rows]
            batch = tokenizer(
                [QUERY] * len(rows), passages, padding=True, truncation="only_second", max_length=512,
                return_tensors="pt",
            )  # fmt: skip
            scores[rows] = model(**batch.to(device)).logits[:, 0].float()
        return scores.cpu().numpy()

    return score


def sentence_transformers(folder: Path) -> Embed:
    """sentence-transformers in float16 on a GPU, as its users call it."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    device = "cuda" if torch.cuda.is_available() else "cpu"  # for a trial of the benchmark itself
    transformer = models.Transformer(str(folder))
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = models.Pooling(width, pooling_mode="cls")
    model = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device=device).half()
    return lambda texts: model.encode(list(texts), batch_size=BATCH_TEXTS, show_progress_bar=False).astype(np.float32)


def ours(folder: Path, heads: Sequence[str] = HEADS[:1]) -> Embed:
    """Ours on a GPU."""
    from bge_onnx import Reranker
    from bge_onnx.model import open_model

    model = open_model(folder)
    model.warm_up()
    if isinstance(model, Reranker):
        return lambda texts: model.score([(QUERY, text) for text in texts], progress=False)
    return lambda texts: model.embed(texts, heads=heads, progress=False).dense


def ours_launched(folder: Path) -> Embed:
    """Ours on a GPU without CUDA graphs."""
    from bge_onnx.run import cuda, loading, session

    cuda.records = loading.records = session.records = lambda _: False
    return ours(folder)


def scores_pairs(folder: Path) -> bool:
    """Whether a checkpoint is a cross-encoder."""
    architectures = json.loads((folder / "config.json").read_text()).get("architectures", [""])
    return architectures[0].endswith("ForSequenceClassification")


def load(variant: str, folder: Path, threads: int) -> Embed:  # noqa: ARG001
    """`variant` is a system's name in `gpu.SYSTEMS`."""
    systems: dict[str, Callable[[], Embed]] = {
        "ours": lambda: ours(folder),
        "ours, 3 heads": lambda: ours(folder, HEADS),
        "ours, no CUDA graphs": lambda: ours_launched(folder),
        "PyTorch": lambda: pytorch_reranker(folder) if scores_pairs(folder) else pytorch(folder),
        "sentence-transformers": lambda: sentence_transformers(folder),
        "PyTorch, 3 heads": lambda: pytorch(folder, heads=HEADS[1:]),
        "PyTorch, compiled": lambda: pytorch(folder, compiled=True),
        "PyTorch, unpadded": lambda: pytorch(folder, attention="flash_attention_2"),
    }
    return systems[variant]()
