"""One system in a process of its own: reads a workload's name a line from stdin, answers with seconds as JSON.

python worker.py SYSTEM FOLDER WORKLOADS.json VECTORS.npy     serve workloads
python worker.py SYSTEM FOLDER                                embed one text and leave: for start-up time
python worker.py SYSTEM FOLDER --text FILE                    embed that file as one text, say how long it took
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]
HEADS = ("dense", "sparse", "colbert")
BATCH_TEXTS = 32  # sentence-transformers' default
GPU_BATCH_TEXTS = 128


def ours(folder: str, heads: Sequence[str] = ("dense",)) -> Embed:
    from bge_onnx import Embedder

    bge = Embedder.open(folder)
    return lambda texts: bge.embed(texts, heads=heads, progress=False).dense


def flag_embedding(folder: str) -> Embed:
    """FlagEmbedding in float32: length-sorted, padded batches, all heads."""
    from FlagEmbedding import BGEM3FlagModel

    heads = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    model = BGEM3FlagModel(
        folder, use_fp16=False, devices="cpu", batch_size=BATCH_TEXTS, passage_max_length=8192, **heads
    )
    return lambda texts: model.encode(list(texts))["dense_vecs"]


def torch_export_heads(folder: str) -> Embed:
    """The three-output graph of torch.onnx.export on ONNX Runtime: length-sorted, padded."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    session = ort.InferenceSession(str(Path(folder) / "export/torch_export.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(8192)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        dense = np.empty((len(texts), 1024), dtype=np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            batch = tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([text.ids for text in batch], dtype=np.int64)
            mask = np.array([text.attention_mask for text in batch], dtype=np.int64)
            dense[rows] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return dense

    return embed


def sentence_transformers(folder: str) -> Embed:
    """PyTorch: length-sorted, padded batches."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=BATCH_TEXTS, show_progress_bar=False)


def torch_export(folder: str, file: str = "torch_export.onnx") -> Embed:
    """The graph of torch.onnx.export on ONNX Runtime, as Optimum's users run it: length-sorted, padded, CLS outside."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    session = ort.InferenceSession(str(Path(folder) / file), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        dense = np.empty((len(texts), session.get_outputs()[0].shape[-1]), dtype=np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            batch = tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([text.ids for text in batch], dtype=np.int64)
            mask = np.array([text.attention_mask for text in batch], dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            dense[rows] = session.run(None, feeds)[0][:, 0]
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed


def pytorch_cuda(folder: str, *, compiled: bool = False, attention: str = "sdpa", heads: Sequence[str] = ()) -> Embed:
    """PyTorch in float16 on a GPU, Gemma2 in bfloat16, as sentence-transformers runs it: length-sorted, padded batches.

    With `flash_attention_2` transformers takes the padding out of attention, and the package flash-attn runs it.
    `heads` are computed besides, and copied to the CPU's memory as their users get them.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"  # for a trial of the benchmark itself
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    dtype = torch.bfloat16 if kind == "gemma2" else torch.float16
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(device).eval()
    linears = [torch.load(Path(folder) / f"{head}_linear.pt", map_location=device) for head in heads]
    if compiled:
        model = torch.compile(model, dynamic=True)

    def last_or_first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if kind in ("mistral", "gemma2"):
            return states[torch.arange(len(states), device=device), mask.sum(dim=1) - 1]
        return states[:, 0]

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        dense = torch.empty(len(texts), model.config.hidden_size, device=device)
        for start in range(0, len(order), GPU_BATCH_TEXTS):
            rows = order[start : start + GPU_BATCH_TEXTS]
            batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(device)
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            for linear in linears:
                torch.nn.functional.linear(states, linear["weight"].to(dtype), linear["bias"].to(dtype)).cpu()
            pooled = last_or_first(states, batch["attention_mask"])
            dense[rows] = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return dense.cpu().numpy()

    return embed


def ours_launched(folder: str) -> Embed:
    """Ours on a GPU without CUDA graphs."""
    from bge_onnx import cuda, session

    cuda.REPLAY_TOKENS, options = (), cuda.provider_options
    session.provider_options = lambda *given: {**options(*given), "enable_cuda_graph": "0"}
    return ours(folder)


SYSTEMS = {
    "cuda: ours": ours,
    "cuda: ours, no CUDA graphs": ours_launched,
    "cuda: ours, 3 heads": lambda folder: ours(folder, HEADS),
    "cuda: PyTorch": pytorch_cuda,
    "cuda: PyTorch, 3 heads": lambda folder: pytorch_cuda(folder, heads=HEADS[1:]),
    "cuda: PyTorch, compiled": lambda folder: pytorch_cuda(folder, compiled=True),
    "cuda: PyTorch, unpadded": lambda folder: pytorch_cuda(folder, attention="flash_attention_2"),
    "ours": ours,
    "ours int8": ours,
    "sentence-transformers": sentence_transformers,
    "torch.onnx.export": torch_export,
    "quantize_dynamic": lambda folder: torch_export(folder, "torch_export_int8.onnx"),
    "ours, dense": ours,
    "ours int8, dense": ours,
    "ours int8, 3 heads": lambda folder: ours(folder, HEADS),
    "ours, 3 heads": lambda folder: ours(folder, HEADS),
    "FlagEmbedding, 3 heads": flag_embedding,
    "torch.onnx.export, 3 heads": torch_export_heads,
}


def serve(embed: Embed, workloads_file: str, vectors_file: str) -> None:
    workloads = {row["name"]: row for row in json.loads(Path(workloads_file).read_text())}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        workload = workloads[line.strip()]
        texts, seconds = workload["texts"], []
        for chunk in [[text] for text in texts] if workload["single"] else [texts]:
            start = time.perf_counter()
            vectors = embed(chunk)
            seconds.append(time.perf_counter() - start)
        if workload["name"] == "mix":
            np.save(vectors_file, vectors)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib}), flush=True)


def main() -> None:
    system, folder, *rest = sys.argv[1:]
    embed = SYSTEMS[system](folder)
    if rest and rest[0] == "--text":
        text = Path(rest[1]).read_text(encoding="utf-8")
        start = time.perf_counter()
        embed([text])
        print(json.dumps({"seconds": time.perf_counter() - start}))
    elif rest:
        serve(embed, *rest)
    else:
        embed(["what is BM25?"])


if __name__ == "__main__":
    main()
