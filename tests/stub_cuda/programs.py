"""What is done with stub CUDA libraries, each in a process of its own: python programs.py NAME BUNDLES.

There are no numbers there, so vectors are not looked at.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import onnx

from bge_onnx import Embedder, embeddings
from bge_onnx.cuda import warm_up_batches
from bge_onnx.onnx_runtime import ort


def _open(folder: Path) -> Embedder:
    embeddings.require_finite = lambda *_: None
    return Embedder.open(folder, threads=1)


def _texts(rng, count, longest):
    return [rng.integers(5, 300, rng.integers(1, longest)) for _ in range(count)]


def load(bundles: Path) -> None:
    """Every bundle loads without a node on the CPU, is warmed up and embeds."""
    for folder in sorted(bundles.iterdir()):
        embedder = _open(folder)
        embedder.warm_up()
        (device,) = embedder.session._on_devices
        recorded = len(getattr(device, "_recordings", ()))
        wanted = len(warm_up_batches(embedder.bundle)) if folder.name == "cuda-fp16" else 0
        assert recorded == wanted, (folder.name, recorded, wanted)
        embedder.embed_token_ids(_texts(np.random.default_rng(0), 9, 60))
        print(folder.name, recorded)


def many(bundles: Path) -> None:
    """Random batches of every size, recorded and not, with every head in turn."""
    embedder, rng = _open(bundles / "cuda-fp16"), np.random.default_rng(0)
    for _ in range(300):
        embedder.embed_token_ids(_texts(rng, rng.integers(1, 40), rng.choice([3, 20, 200])))


def others(bundles: Path) -> None:
    """While one thread records, another loads, warms up, closes and drops bundles."""
    stop = threading.Event()

    def load_and_drop() -> None:
        while not stop.is_set():
            embedder = _open(bundles / "cuda-fp16")
            embedder.embed_token_ids([np.array([1, 2])])
            embedder.session.close()
            dropped = _open(bundles / "cuda-fp32")
            dropped.embed_token_ids([np.array([1, 2])])
            del dropped

    thread = threading.Thread(target=load_and_drop)
    thread.start()
    try:
        _open(bundles / "cuda-fp16").warm_up()
    finally:
        stop.set()
        thread.join()


def stdout(bundles: Path) -> None:
    """Loads in many threads at once leave stdout where it was."""
    before = sys.stdout
    threads = [threading.Thread(target=lambda: _open(bundles / "cuda-fp16").warm_up) for _ in range(8)]
    threads += [threading.Thread(target=lambda: _open(bundles / "cuda-fp32").session.load(1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is before


def graph(bundles: Path) -> None:
    """The graph that ONNX Runtime makes of one that is recorded has no Gemm, whose bias is multiplied by a buffer that
    moves.
    """
    made = bundles.parent / "made.onnx"
    session_of = ort.InferenceSession

    def written(path: Path, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        options.optimized_model_filepath = str(made)
        return session_of(path, options, **more)

    ort.InferenceSession = written
    _open(bundles / "cuda-fp16").session.load(1)
    operators = {node.op_type for node in onnx.load(made, load_external_data=False).graph.node}
    assert "MatMul" in operators
    assert "Gemm" not in operators, operators


if __name__ == "__main__":
    {function.__name__: function for function in (load, many, others, stdout, graph)}[sys.argv[1]](Path(sys.argv[2]))
