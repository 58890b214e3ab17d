"""A bundle's graph in ONNX Runtime, on one text with all cores or on many batches with a core each."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.graph_names import (
    KEPT_TOKENS,
    KEYS,
    ON_DEVICE,
    PAST_KEYS,
    PAST_VALUES,
    QUERY_TOKENS,
    TOKEN_TYPES,
    VALUES,
)
from bge_onnx.errors import BundleError, InputError, first_line
from bge_onnx.run.batches import Batch
from bge_onnx.run.cuda import CUDA, Device, Outputs, device_held, records, warm_up_batches
from bge_onnx.run.loading import load
from bge_onnx.run.onnx_runtime import ort

if TYPE_CHECKING:
    from bge_onnx.run.devices import Devices

Run = Callable[[Batch], list[tuple[Batch, Outputs]]]
"""A batch, or its halves, to the graph's outputs."""

TOGETHER_TOKENS = 1024
"""Work of up to this many tokens runs batch after batch with all cores on each; more is spread, a core a batch.
Spread work needs a session of its own, whose weights take memory once more: small requests must not cause that."""

KEPT_RUN_TOKENS = 1024
"""A run of more tokens gives its memory back when it ends. ONNX Runtime keeps the most that any run took: of a text of
8192 tokens, 460 MiB for bge-m3 cut to three layers. Shorter runs leave little to give back, and giving it back made
the peak higher; an arena that grows by what is asked for (kSameAsRequested) held up to three times as much."""


@dataclass(frozen=True, slots=True, eq=False)
class KeysValues:
    """Keys and values (layers, key-value heads, P, head width) float32 of P tokens that texts begin with."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    def first(self, tokens: int) -> KeysValues:
        """Those of the first `tokens` tokens, which do not depend on the others."""
        if tokens == self.keys.shape[2]:
            return self
        return KeysValues(*(np.ascontiguousarray(cache[:, :, :tokens]) for cache in (self.keys, self.values)))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class Session:
    """The bundle's graph, loaded when first used: once for single texts, once more for corpora; or once on each device.

    ONNX Runtime fixes the threads of a session when it is made. Many short matrix products run faster on separate
    cores than one by one on all of them, so corpora use a session of one thread, run from several Python threads
    (ONNX Runtime releases the GIL).
    """

    bundle: Bundle
    threads: int
    devices: tuple[int, ...] = (0,)
    device_memory: int | None = None  # bytes of each that ONNX Runtime may take; None for all that there are
    _sessions: dict[int, ort.InferenceSession] = field(default_factory=dict, init=False)
    _on_devices: list[Device | Devices] = field(default_factory=list, init=False)  # none or one
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def run(
        self, batches: Sequence[Batch], names: Sequence[str], past: KeysValues | None = None
    ) -> Iterator[tuple[Batch, Outputs]]:
        """Each batch with the graph outputs `names`, as they get ready; `past` stands in front of every text.

        If these are the dense vectors alone, the last layer is computed only for the tokens that they need.

        Raises ProviderError: ONNX Runtime here lacks the bundle's provider. BundleError: the graph cannot be loaded.
        """
        if self.bundle.layout in ON_DEVICE:
            runs = self._loaded_on_devices()
            if isinstance(runs, Device):
                yield from runs.run(batches, names, dense_alone=self._dense_alone(names))
            else:
                yield from _spread(batches, lambda batch: runs.run(batch, names), workers=len(self.devices))
            return
        total_tokens = sum(batch.input_ids.size for batch in batches)
        few = len(batches) < 2 or self.threads == 1 or total_tokens <= TOGETHER_TOKENS
        if few or self.bundle.causal:  # a decoder's weights take gigabytes: never twice
            session = self.load(self.threads)
            for batch in batches:
                yield batch, self._run_one(session, batch, names, past)
            return
        session = self.load(1)
        yield from _spread(
            batches, lambda batch: [(batch, self._run_one(session, batch, names, past))], workers=self.threads
        )

    def load(self, intra_op_threads: int) -> ort.InferenceSession:
        """The ONNX Runtime session with that many threads, made once."""
        with self._lock:
            if intra_op_threads not in self._sessions:
                with device_held(self.bundle):
                    loaded = load(self.bundle, intra_op_threads, self.devices[0], self.device_memory)
                self._sessions[intra_op_threads] = loaded
            return self._sessions[intra_op_threads]

    def _dense_alone(self, names: Sequence[str]) -> bool:
        pooled = self.bundle.of_pooled
        return {self.bundle.outputs[pooled], self.bundle.raw_outputs.get(pooled)}.issuperset(names)

    def _loaded_on_devices(self) -> Device | Devices:
        several = len(self.devices) > 1
        session = None if several else self.load(self.threads)
        with self._lock:
            if not self._on_devices:
                bundle = self.bundle
                if session is None:
                    from bge_onnx.run.devices import Devices  # noqa: PLC0415 - processes are for several GPUs alone

                    self._on_devices.append(Devices.start(bundle, self.devices, self.device_memory))
                else:
                    place = ("cuda" if bundle.provider == CUDA else "cpu", self.devices[0])
                    inputs = [node.name for node in session.get_inputs()]
                    last = bundle.pooling == "last"
                    device = Device(session, place, inputs, last, bundle.pad_id, records(bundle))
                    self._on_devices.append(device)
            return self._on_devices[0]

    def warm_up(self) -> None:
        """Run what makes unit dense vectors quick: on every device each size that is replayed, else one text."""
        names, batches = [self.bundle.outputs[self.bundle.of_pooled]], warm_up_batches(self.bundle)
        runs = self._loaded_on_devices() if self.bundle.layout in ON_DEVICE else None
        if runs is None or isinstance(runs, Device):
            list(self.run(batches, names))
        else:
            runs.each(batches, names)

    def close(self) -> None:
        """Let go of the loaded graphs, and end the processes of several devices; they load again when used."""
        with self._lock, device_held(self.bundle):
            self._sessions.clear()
            self._on_devices.clear()

    def __del__(self) -> None:
        """Release loaded graphs while no other thread records; at the interpreter's end they go with it."""
        if not sys.is_finalizing():
            self.close()

    def past_of(self, token_ids: NDArray[np.int64]) -> KeysValues | None:
        """Keys and values of a beginning's tokens (P,), in one run with all cores; None where graphs take none."""
        if self.bundle.layout == "whole":
            return None
        session = self.load(self.threads)
        none = _no_past(session)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": token_ids[None],
            PAST_KEYS: none,
            PAST_VALUES: none,
            KEPT_TOKENS: np.array([len(token_ids)]),
        }
        return KeysValues(*self._compute(session, [KEYS, VALUES], feeds))

    def _run_one(
        self, session: ort.InferenceSession, batch: Batch, names: Sequence[str], past: KeysValues | None
    ) -> Outputs:
        inputs = {node.name for node in session.get_inputs()}
        feeds: dict[str, NDArray[Any]] = {"input_ids": batch.input_ids}
        if "attention_mask" in inputs:
            feeds["attention_mask"] = batch.attention_mask
        if TOKEN_TYPES in inputs:
            feeds[TOKEN_TYPES] = batch.token_types
        if QUERY_TOKENS in inputs:
            feeds[QUERY_TOKENS] = np.array([1 if self._dense_alone(names) else batch.input_ids.shape[1]])
        if PAST_KEYS in inputs:
            none = _no_past(session)
            keys, values = (past.keys, past.values) if past else (none, none)
            feeds |= {PAST_KEYS: keys, PAST_VALUES: values, KEPT_TOKENS: np.zeros(1, dtype=np.int64)}
        options = _giving_back() if batch.input_ids.size > KEPT_RUN_TOKENS else None
        return dict(zip(names, self._compute(session, names, feeds, options), strict=True))

    def _compute(
        self,
        session: ort.InferenceSession,
        names: Sequence[str],
        feeds: Mapping[str, NDArray[Any]],
        options: ort.RunOptions | None = None,
    ) -> list[Any]:
        """The graph's outputs. Raises BundleError: the weights changed since they were opened, or the run failed."""
        mapped = self.bundle.mapped
        self.bundle.require_unwritten(mapped)  # reading a mapped file that was cut short would end the process
        try:
            outputs: list[Any] = session.run(names, feeds, options)
        except Exception as error:  # onnxruntime's exceptions have no common class but Exception
            self.bundle.require_unwritten(mapped)
            shape = " x ".join(map(str, feeds["input_ids"].shape))
            raise BundleError(
                f"{self.bundle.folder / self.bundle.graph}: expected vectors of {shape} tokens, found "
                f"{first_line(error)}\n"
                "    Where memory ran out, pass a smaller budget_tokens; else export the bundle again."
            ) from error
        self.bundle.require_unwritten(mapped)
        return outputs


def _giving_back() -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _no_past(session: ort.InferenceSession) -> NDArray[np.float32]:
    layers, heads, _, width = next(node.shape for node in session.get_inputs() if node.name == PAST_KEYS)
    return np.zeros((layers, heads, 0, width), dtype=np.float32)


def _spread(batches: Iterable[Batch], run: Run, *, workers: int) -> Iterator[tuple[Batch, Outputs]]:
    """Batches on so many threads. Few are begun ahead of the caller: token states above all must not pile up."""
    pool, waiting, left = ThreadPoolExecutor(workers), set[Future[list[tuple[Batch, Outputs]]]](), iter(batches)
    try:
        while True:
            for batch in itertools.islice(left, 2 * workers - len(waiting)):
                waiting.add(pool.submit(run, batch))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    finally:  # Ctrl-C, or a caller who stops early, leaves the batches not begun undone
        pool.shutdown(wait=True, cancel_futures=True)


def devices_of(bundle: Bundle, devices: Sequence[int] | None, memory_bytes: int | None) -> tuple[int, ...]:
    """The devices that are asked for, or the first.

    Raises InputError: devices or their memory for a bundle that runs on the CPU; no number, one twice, no memory.
    """
    if bundle.provider != CUDA and (devices is not None or memory_bytes is not None):
        raise InputError(
            f"devices: expected a bundle for GPUs, found {bundle.name} ({bundle.target}).\n"
            "    Leave devices and device_memory out, or export for cuda-fp16."
        )
    numbers = [0] if devices is None else list(devices)
    if (
        not numbers
        or not all(isinstance(number, int) and number >= 0 for number in numbers)
        or len(set(numbers)) < len(numbers)
    ):
        raise InputError(f"devices: expected distinct numbers from 0 on, as nvidia-smi lists them, found {devices!r}")
    if memory_bytes is not None and memory_bytes < 1:
        raise InputError(f"device_memory: expected bytes, at least 1, found {memory_bytes}")
    return tuple(numbers)
