"""What is done with stub CUDA libraries, each in a process of its own: python programs.py NAME BUNDLES.

There are no numbers there, so vectors are not looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bge_onnx import Bundle, BundleError, Embedder, Reranker
from bge_onnx.errors import BgeError
from bge_onnx.model import open_model
from bge_onnx.run import loading
from bge_onnx.run.cuda import records, warm_up_batches
from bge_onnx.run.devices import attention_kernels
from bge_onnx.run.onnx_runtime import ort
from bge_onnx.vectors import embeddings

HEADS = ("dense", "sparse", "colbert")
KEPT_SECONDS = 0.012  # an error's: long enough that another thread records meanwhile


def _open(folder: Path, **options: Any) -> Embedder:
    embeddings.require_finite = lambda *_: None
    return open_model(folder, threads=1, **options)


def _texts(rng, count, longest):
    return [rng.integers(5, 250, rng.integers(1, longest)) for _ in range(count)]


def load(bundles: Path) -> None:
    """Every bundle loads without a node on the CPU, is warmed up and embeds."""
    for folder in sorted(bundles.iterdir()):
        embedder = _open(folder)
        embedder.warm_up()
        (device,) = embedder.session._on_devices
        assert len(device._recordings) == (len(warm_up_batches(embedder.bundle)) if records(embedder.bundle) else 0)
        texts = _texts(np.random.default_rng(0), 9, 60)
        if isinstance(embedder, Reranker):
            embedder.score([(" ".join(map(str, ids)), "a passage") for ids in texts])
        else:
            embedder.embed_token_ids(texts)
        print(folder.name, len(device._recordings))


def many(bundles: Path) -> None:
    """Random batches of every size, recorded and not, dense vectors alone and all heads in turn."""
    embedder, rng = _open(bundles / "m3-cuda-fp16"), np.random.default_rng(0)
    for number in range(300):
        texts = _texts(rng, rng.integers(1, 40), rng.choice([3, 20, 200]))
        embedder.embed_token_ids(texts, heads=HEADS if number % 3 == 0 else HEADS[:1])


def several(bundles: Path) -> None:
    """Two devices, warmed up by three threads at once."""
    embedder = _open(bundles / "m3-cuda-fp16", devices=[0, 1])
    threads = [threading.Thread(target=embedder.warm_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(embedder.embed_token_ids(_texts(np.random.default_rng(0), 200, 60)).dense))


def _while_another_records(bundles: Path, repeat: Callable[[], None]) -> None:
    """Do something in a thread, again and again, until all sizes are recorded in this one."""
    stop = threading.Event()

    def until_stopped() -> None:
        while not stop.is_set():
            repeat()

    embedder = _open(bundles / "bert-cuda-fp16")
    embedder.session.load(1)
    thread = threading.Thread(target=until_stopped)
    thread.start()
    try:
        embedder.warm_up()
    finally:
        stop.set()
        thread.join()


def _error(do: Callable[[], object]) -> str:
    """What is wrong; the error, whose frames hold what failed, goes some milliseconds later."""
    try:
        do()
    except BgeError as error:
        time.sleep(KEPT_SECONDS)
        return str(error)
    raise AssertionError


def closed(bundles: Path) -> None:
    """Bundles are loaded, run, closed and dropped."""

    def repeat() -> None:
        embedder = _open(bundles / "m3-cuda-fp16")
        embedder.embed_token_ids([np.array([1, 2])])
        embedder.session.close()
        dropped = _open(bundles / "m3-cuda-fp32")
        dropped.embed_token_ids([np.array([1, 2])])

    _while_another_records(bundles, repeat)


def full(bundles: Path) -> None:
    """Weights do not fit, and the error is kept for a while."""

    def repeat() -> None:
        embedder = _open(bundles / "m3-cuda-fp16", device_memory=1000)
        assert "expected room for the weights" in _error(lambda: embedder.session.load(1))

    _while_another_records(bundles, repeat)


def overfull(bundles: Path) -> None:
    """A batch does not fit, nor does its half, and the error is kept for a while."""
    rng = np.random.default_rng(0)

    def repeat() -> None:
        embedder = _open(bundles / "m3-cuda-fp16", device_memory=3 << 20)
        assert "device memory: expected room" in _error(lambda: embedder.embed_token_ids(_texts(rng, 300, 900)))

    _while_another_records(bundles, repeat)


def refused(bundles: Path) -> None:
    """A graph is loaded and then found to be another than its bundle says, and the error is kept for a while."""

    def check(bundle: Bundle, _: object) -> None:
        if bundle.target == "cuda-fp32":
            raise BundleError

    loading.check_graph = check
    _while_another_records(bundles, lambda: _error(lambda: _open(bundles / "m3-cuda-fp32").session.load(1)))


def stdout(bundles: Path) -> None:
    """What ONNX Runtime prints of missing libraries is on stderr, and nobody's stdout is changed for it."""

    def missing(path: str) -> None:
        raise OSError(path)

    library, before, seen = ctypes.CDLL, sys.stdout, []
    preload = ort.preload_dlls

    def preloading() -> None:
        ctypes.CDLL = missing
        preload()
        ctypes.CDLL = library
        seen.append(sys.stdout is before)

    ort.preload_dlls = preloading
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        _open(bundles / "bert-cuda-fp16").session.load(1)
    assert seen == [True]
    assert "Failed to load libcublas" in said.getvalue()
    assert sys.stdout is before


def graphs(bundles: Path) -> None:
    """The operators that the graphs have which ONNX Runtime makes of ours."""
    made = bundles.parent / "made.onnx"
    session_of = ort.InferenceSession

    def written(path: Path, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        options.optimized_model_filepath = str(made)
        return session_of(path, options, **more)

    ort.InferenceSession = written
    for folder in sorted(bundles.iterdir()):
        _open(folder).session.load(1)
        operators = {node.op_type for node in onnx.load(made, load_external_data=False).graph.node}
        print(folder.name, *sorted(operators))


def kernels(bundles: Path) -> None:
    """The attention kernels that ONNX Runtime chooses."""
    for folder in sorted(bundles.iterdir()):
        print(folder.name, *sorted(attention_kernels(folder)))


PROGRAMS = (load, many, several, closed, full, overfull, refused, stdout, graphs, kernels)

if __name__ == "__main__":
    {function.__name__: function for function in PROGRAMS}[sys.argv[1]](Path(sys.argv[2]))
