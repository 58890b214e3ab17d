"""Batches on a device, and CUDA graphs that replay small ones.

A kernel launch takes microseconds, and a small model has a hundred: at one short text the GPU waits for the host. ONNX
Runtime can record all launches of a run and replay them at once, as long as shapes and addresses stay. So small batches
are filled up to one of a few sizes, and each size keeps its buffers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.targets import facts_of
from bge_onnx.errors import ProviderError, first_line
from bge_onnx.run.batches import Batch
from bge_onnx.run.device_inputs import packed_inputs, whole_inputs
from bge_onnx.run.onnx_runtime import ort
from bge_onnx.run.recording import Feeds, Recording

Outputs = Mapping[str, NDArray[Any]]

CUDA = "CUDAExecutionProvider"

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Linux: NVIDIA's driver has a folder here for each GPU."""

AHEAD = 2
"""Batches begun before the caller has taken the first: the device never waits for what the caller does with vectors."""

OUT_OF_MEMORY = (
    "failed to allocate memory", "smaller than requested bytes",  # the arena, and its limit
    "out of memory", "status_alloc_failed", "cuda failure 2:",
)  # fmt: skip
"""What ONNX Runtime's errors say, in lower case, when the device is full."""

NO_DEVICE = ("cuda failure", "cuda error", "cudaerror", "invalid device", "cuda-capable", "libcu", "default cpu ep")
"""What they say, in lower case, when there is no such device, or no library or driver for it."""

DEVICE_LOCK = threading.RLock()
"""Held by every run, load and release: while a run is recorded as a CUDA graph, no other thread of the process may use
the device. A thread that holds it may release what the garbage collector finds."""

REPLAY_TOKENS = (16, 32, 64, 128, 256, 512)
REPLAY_TEXTS = (1, 2, 4, 8, 16, 32)
"""Sizes that batches are filled up to; larger ones are launched kernel by kernel. On an H200 a text of 16 tokens takes
1.1 ms replayed and 2.1 to 2.5 ms launched (bge-small, bge-base); other sizes are not measured."""


def device_held(bundle: Bundle) -> AbstractContextManager[None]:
    """The device alone, for a bundle that runs on one."""
    return _held() if bundle.provider == CUDA else contextlib.nullcontext()


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """The device alone. An error's frames are cleared before other threads record. Otherwise they would keep what they
    have on the device until whoever catches the error releases it, at any time.
    """
    with DEVICE_LOCK:
        try:
            yield
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            raise


def records(bundle: Bundle) -> bool:
    """Whether small batches of a bundle are recorded and replayed as CUDA graphs."""
    return bundle.layout == "packed" and facts_of(bundle.target).records


def provider_options(bundle: Bundle, device: int, memory_bytes: int | None = None) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider for a bundle; `memory_bytes` is the most that its arena may take.

    The arena doubles when it grows, ONNX Runtime's default: forty requests of up to 400 texts took 528 MiB of
    bge-small's, and 1132 where it grew by what was asked for (kSameAsRequested; counted under stub CUDA libraries).
    """
    return {
        **({"gpu_mem_limit": str(memory_bytes)} if memory_bytes else {}),
        "device_id": str(device),
        "use_tf32": "0",  # float32 is float32; products of float16 do not ask
        "enable_cuda_graph": "1" if records(bundle) else "0",
    }


def device_count() -> int:
    """How many GPUs there are: as CUDA_VISIBLE_DEVICES says, else as the driver says; at least one."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return max(1, len([name for name in named.split(",") if name.strip()]))
    return max(1, len(list(DRIVER.glob("*"))))


def says(error: Exception, signs: Sequence[str]) -> bool:
    """Whether an error's text has one of these."""
    text = str(error).lower()
    return any(sign in text for sign in signs)


def replay_size(batch: Batch) -> tuple[int, int] | None:
    """The tokens and texts that a batch is filled up to; None for one that is too large."""
    tokens = next((size for size in REPLAY_TOKENS if size >= len(batch.input_ids)), None)
    texts = next((size for size in REPLAY_TEXTS if size >= len(batch.rows)), None)
    return (tokens, texts) if tokens and texts else None


def warm_up_batches(bundle: Bundle) -> list[Batch]:
    """Batches that make a bundle ready: one of every size that is replayed, else one text."""
    if not records(bundle):
        return [_batch_of(np.array([2]), packed=bundle.layout == "packed")]
    batches = []
    for tokens, texts in itertools.product(REPLAY_TOKENS, REPLAY_TEXTS):
        total = min(tokens, texts * bundle.max_tokens)
        lengths = total // texts + (np.arange(texts) < total % texts)
        batch = _batch_of(lengths, packed=True)
        if lengths[-1] and replay_size(batch) == (tokens, texts):  # else too few tokens or texts
            batches.append(batch)
    return batches


def _batch_of(lengths: NDArray[np.int64], *, packed: bool) -> Batch:
    """A batch of texts of these lengths, of token id 0."""
    input_ids = np.zeros(lengths.sum() if packed else (len(lengths), lengths[0]), dtype=np.int64)
    return Batch(rows=np.arange(len(lengths)), input_ids=input_ids, lengths=lengths)


def filled_up(batch: Batch, tokens: int, texts: int) -> Batch:
    """The batch with empty texts added up to `texts` texts, and then one text of the tokens left of `tokens`."""
    left = tokens - len(batch.input_ids)
    lengths = np.concatenate([batch.lengths, np.zeros(texts - len(batch.rows), dtype=np.int64), [left]])
    filler = np.zeros(left, dtype=np.int64)
    types = None if batch.types is None else np.concatenate([batch.types, filler])
    return Batch(rows=batch.rows, input_ids=np.concatenate([batch.input_ids, filler]), lengths=lengths, types=types)


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A batch with what the graph takes of it, and the size that it is filled up to, if it is replayed."""

    batch: Batch
    feeds: Feeds
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A session on a device. All runs are in one thread: ONNX Runtime keeps CUDA graphs with the thread that made them.

    place   ("cuda", its number)
    inputs  the graph's
    last    dense vectors come from each text's last token
    pad_id  which some models' positions leave out
    recorded  small batches are filled up, recorded and replayed
    """

    session: ort.InferenceSession
    place: tuple[str, int]
    inputs: Sequence[str]
    last: bool
    pad_id: int
    recorded: bool = True
    _recordings: dict[tuple[Any, ...], Recording] = field(default_factory=dict, init=False)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), init=False)

    def run(
        self, batches: Sequence[Batch], names: Sequence[str], *, dense_alone: bool
    ) -> Iterator[tuple[Batch, Outputs]]:
        """Each batch with the outputs `names`, in order. While the caller uses one batch, the next ones run; while the
        device runs, the caller's thread prepares further batches.

        Raises ProviderError: the device's memory is too small even for half a batch, or for one text.
        """
        running: deque[Future[list[tuple[Batch, Outputs]]]] = deque()
        try:
            for batch in batches:
                ready = self._ready(batch, dense_alone=dense_alone)
                running.append(self._thread.submit(self._run_or_halve, ready, names, dense_alone=dense_alone))
                if len(running) > AHEAD:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:  # Ctrl-C, or a caller who stops early
            for future in running:
                future.cancel()

    def __del__(self) -> None:
        """Release the buffers and the session while no other thread records. At the interpreter's end nobody waits: the
        thread that holds the lock may be one that Python has stopped.
        """
        with contextlib.nullcontext() if sys.is_finalizing() else DEVICE_LOCK:
            self._recordings.clear()
            object.__setattr__(self, "session", None)

    def _run_or_halve(
        self, ready: Ready, names: Sequence[str], *, dense_alone: bool, halved: bool = False
    ) -> list[tuple[Batch, Outputs]]:
        batch = ready.batch
        try:
            with _held():
                return [(batch, self._run(ready, names))]
        except Exception as error:  # onnxruntime's exceptions have no common class but Exception
            if not says(error, OUT_OF_MEMORY):
                raise
            if halved or len(batch.rows) == 1:
                raise ProviderError(
                    f"device memory: expected room for {len(batch.rows)} texts with {batch.lengths.sum()} tokens, the "
                    f"longest of {batch.lengths.max()}; found {first_line(error)}\n"
                    "    Give a smaller budget_tokens or max_tokens, or free memory on the device."
                ) from error
        found = []
        for half in halves(batch):
            part = self._ready(half, dense_alone=dense_alone)
            found += self._run_or_halve(part, names, dense_alone=dense_alone, halved=True)
        return found

    def _ready(self, batch: Batch, *, dense_alone: bool) -> Ready:
        if not batch.packed:
            return Ready(batch, self._taken(whole_inputs(batch)), None)
        size = replay_size(batch) if dense_alone and self.recorded else None
        full, longest = (filled_up(batch, *size), size[0]) if size else (batch, None)
        feeds = packed_inputs(full, last=self.last, dense_alone=dense_alone, pad_id=self.pad_id, longest=longest)
        return Ready(batch, self._taken(feeds), size)

    def _run(self, ready: Ready, names: Sequence[str]) -> Outputs:
        if ready.size:
            return self._replay(ready, names)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")  # no CUDA graph
        return dict(zip(names, self.session.run(names, ready.feeds, options), strict=True))

    def _replay(self, ready: Ready, names: Sequence[str]) -> Outputs:
        """The dense outputs `names` of a batch that is filled up."""
        assert ready.size
        feeds, key = ready.feeds, (*ready.size, *names)
        recording = self._recordings.get(key)
        if recording is None:
            widths = {output.name: output.shape[-1] for output in self.session.get_outputs()}
            shapes = {name: (ready.size[1] + 1, widths[name]) for name in names}
            recording = Recording.make(self.session, feeds, shapes, self.place, next(self._numbers))
        outputs = recording.run(feeds)
        self._recordings[key] = recording  # once it has run: one that failed is made again
        return {name: values[: len(ready.batch.rows)].copy() for name, values in outputs.items()}  # buffers are reused

    def _taken(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Those that the graph has an input for."""
        return {name: feeds[name] for name in self.inputs}


def halves(batch: Batch) -> list[Batch]:
    """A batch as two, cut between texts."""
    middle = len(batch.rows) // 2
    at = int(batch.starts[middle]) if batch.packed else middle
    return [
        Batch(
            rows=batch.rows[texts],
            input_ids=batch.input_ids[tokens],
            lengths=batch.lengths[texts],
            types=None if batch.types is None else batch.types[tokens],
        )
        for texts, tokens in ((slice(middle), slice(at)), (slice(middle, None), slice(at, None)))
    ]
