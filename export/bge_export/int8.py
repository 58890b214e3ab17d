"""Rounding of linear layers to bytes: rotated inputs, weights that suit AVX2's products, a scale for each output.

Block Hadamard matrices spread outliers before rounding: https://arxiv.org/abs/2404.00456 (QuaRot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_export.weights import Array
from bge_onnx.errors import CheckpointError

ROTATED = 64
"""Inputs that are mixed by one Hadamard matrix; every known model's widths are multiples of it.

Trained all-MiniLM-L6-v2, STS-B's test sentences: the mean cosine to float32 is 0.9994 with 64 and with 128, whose
products are twice as many."""

WORD_TABLE = "embeddings.word_embeddings.weight"

RATIOS = np.linspace(1, 2, 13, dtype=np.float32)
"""Scales that are tried for each output, over the one whose largest weight is 127."""

Integers = NDArray[np.int8]

LARGEST = 127
TINY = np.float32(1e-30)  # the step of a row of zeros, here and in the graph


LEVELS = 109
"""A row's largest value without its sign, as an integer. Bytes are this plus `ZERO`, 1 to 219."""

ZERO = LEVELS + 1
PAIR = 149
"""The most that two neighbouring weights of one sign have together: AVX2's vpmaddubsw adds two products of bytes in 16
bits, and 219 · 149 = 32631; int16 ends at 32767. Fewer levels for more of a pair err as much."""


class Sizes(Protocol):
    """Of an encoder."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


def hadamard(size: int) -> Array:
    """Sylvester's matrix (size, size) over the root of its size: symmetric, and its own inverse.

    Raises ValueError: a size that is no power of two.
    """
    if size & (size - 1):
        raise ValueError(f"size: expected a power of two, found {size}")
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def rotate(rows: Array, size: int) -> Array:
    """Rows (N, K) with each `size` values multiplied by the Hadamard matrix."""
    rotated: Array = (rows.reshape(len(rows), -1, size) @ hadamard(size)).reshape(rows.shape)
    return rotated


def quantize(weight: Array) -> tuple[Integers, Array]:
    """Integers (N, K) from -127 to 127, neighbours of one sign within `PAIR`, and a scale for each output (N,).

    Of some scales each output takes the one whose integers err least.
    """
    largest = np.abs(weight).max(axis=1)
    best = np.full(len(weight), np.inf)
    integers = np.zeros(weight.shape, dtype=np.int8)
    scales = np.ones(len(weight), dtype=np.float32)
    for ratio in RATIOS:
        step = np.where(largest > 0, largest * (ratio / np.float32(LARGEST)), np.float32(1))
        found = within_budget(np.rint(weight / step[:, None]))
        errors = np.square(found * step[:, None] - weight).sum(axis=1)
        better = errors < best
        integers[better], scales[better], best[better] = found[better], step[better], errors[better]
    return integers, scales


def within_budget(integers: Array) -> Array:
    """Integers (N, K) of which both neighbours give half of what two of one sign have over `PAIR`."""
    pairs = integers.reshape(len(integers), -1, 2)
    excess = np.maximum(np.abs(pairs.sum(axis=2)) - PAIR, 0) * (pairs[..., 0] * pairs[..., 1] > 0)
    shares = np.stack([np.ceil(excess / 2), np.floor(excess / 2)], axis=2)
    found: Array = (pairs - np.sign(pairs) * shares).reshape(integers.shape)
    return found


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer as it is rounded: by how much its weight's `inputs` and `outputs` are rotated, 0 is not at all.

    online  whether the inputs are to be rotated when the model runs; they come rotated out of attention
    """

    inputs: int
    outputs: int = 0
    online: bool = True

    @classmethod
    def of(cls, module: str, config: Sizes) -> Linear | None:
        """The layer of a checkpoint's module; None for one that stays in float32, as the heads do.

        Attention mixes values head by head, so a rotation of each head's values is undone behind it.
        """
        head_width = config.hidden_size // config.num_attention_heads
        head_rotated = head_width & -head_width  # the largest power of two in it
        if not module.startswith("encoder."):
            return None
        if module.endswith(".self.value"):
            return cls(ROTATED, head_rotated)
        if module.endswith(".attention.output.dense"):
            return cls(head_rotated, online=False)
        return cls(ROTATED)

    def rotate(self, weight: Array) -> Array:
        """A weight (N, K) for rotated inputs, giving rotated outputs; of such a weight the one before."""
        weight = rotate(weight, self.inputs)
        return rotate(weight.T, self.outputs).T if self.outputs else weight


def check_sizes(config: Sizes) -> None:
    """Raise CheckpointError: widths that the Hadamard matrix does not divide."""
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % ROTATED:
            raise CheckpointError(
                f"config.json: expected {name} to be a multiple of {ROTATED} for the target cpu-int8, found "
                f"{getattr(config, name)}.\n    Export for cpu-fp32."
            )
