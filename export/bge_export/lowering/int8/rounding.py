"""Rounding of linear layers to bytes: rotated inputs, weights that suit AVX2's products, a scale for each output.

Block Hadamard matrices spread outliers before rounding: https://arxiv.org/abs/2404.00456 (QuaRot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_export.checkpoint.weights import Array
from bge_onnx.errors import CheckpointError

ROTATED = 64
"""Inputs that are mixed by one Hadamard matrix; every known model's widths are multiples of it.

Trained all-MiniLM-L6-v2, STS-B's test sentences: the mean cosine to float32 is 0.9994 with 64 and with 128, whose
products are twice as many."""

WORD_TABLE = "embeddings.word_embeddings.weight"

RATIOS = np.linspace(1, 2, 13, dtype=np.float32)
"""Factors that are tried for each output. They multiply the scale at which the largest weight becomes 127."""

Integers = NDArray[np.int8]

LARGEST = 127
TINY = np.float32(1e-30)  # the step of a row of zeros, here and in the graph
QUAD = 4
"""Inputs that CPUs multiply and add up at once."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that rows and weights are rounded to, so that AVX2's sums of products fit into 16 bits.

    vpmaddubsw adds the products of two neighbours in 16 bits, and saturates. The sums of the next quads are added to
    these, still in 16 bits, before they are widened to 32.

    levels  the largest magnitude of a row's integers; bytes are the integers plus `zero`, from 1 to 2 * levels + 1
    added   quads whose sums are added up in 16 bits
    most    the largest total of one sign's weights in such a sum: (2 * levels + 1) * most is below 2 ** 15
    """

    levels: int
    added: int
    most: int

    @property
    def zero(self) -> int:
        return self.levels + 1

    def summed_with(self, place: int) -> list[int]:
        """The inputs in front of `place` whose products are added up with its own."""
        start, first = place - place % (QUAD * self.added), place % QUAD // 2 * 2
        group = [start + QUAD * quad + first + member for quad in range(self.added) for member in (0, 1)]
        return [other for other in group if other < place]

    def within(self, integers: Array) -> Array:
        """Integers (N, K) whose totals of one sign in a sum stay within `most`.

        Where a total is over, each of its integers gives an equal share of the excess.
        """
        quads = integers.reshape(len(integers), -1, self.added, QUAD // 2, 2).swapaxes(2, 3)
        sums = np.array(quads).reshape(-1, 2 * self.added)
        may_be_over = np.abs(sums) @ np.ones(2 * self.added, dtype=sums.dtype) > self.most
        held = sums[may_be_over]
        sums[may_be_over] = self._cut(np.maximum(held, 0)) - self._cut(np.maximum(-held, 0))
        found: Array = sums.reshape(quads.shape).swapaxes(2, 3).reshape(integers.shape)
        return found

    def _cut(self, sizes: Array) -> Array:
        while (excess := np.maximum(sizes.sum(axis=1, keepdims=True) - self.most, 0)).any():
            given = sizes > 0
            count = np.maximum(given.sum(axis=1, keepdims=True), 1)
            shares = (excess + count - given.cumsum(axis=1)) // count  # the first give what is left over
            sizes = sizes - np.minimum(shares * given, sizes)
        return sizes


EIGHT_BITS = Grid(levels=109, added=1, most=149)
"""219 * 149 = 32631. Fewer levels for more of a pair err as much."""

SEVEN_BITS = Grid(levels=63, added=2, most=258)
"""127 * 258 = 32766. The bytes have seven bits, and AVX2 widens half as often."""

GRIDS = {8: EIGHT_BITS, 7: SEVEN_BITS}
"""By the bits of activations."""


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


def quantize(weight: Array, grid: Grid) -> tuple[Integers, Array]:
    """Integers (N, K) from -127 to 127 within the grid's sums, and a scale for each output (N,).

    Of some scales each output takes the one whose integers err least.
    """
    largest = np.abs(weight).max(axis=1)
    best = np.full(len(weight), np.inf)
    integers = np.zeros(weight.shape, dtype=np.int8)
    scales = np.ones(len(weight), dtype=np.float32)
    for ratio in RATIOS:
        step = np.where(largest > 0, largest * (ratio / np.float32(LARGEST)), np.float32(1))
        found = grid.within(np.rint(weight / step[:, None]))
        errors = np.square(found * step[:, None] - weight).sum(axis=1)
        better = errors < best
        integers[better], scales[better], best[better] = found[better], step[better], errors[better]
    return integers, scales


@dataclass(frozen=True, slots=True)
class Linear:
    """How a linear layer is rounded. `inputs` and `outputs` are the block sizes of its weight's rotation, 0 for none.

    online  whether inputs are rotated when the model runs; False where they come out of attention already rotated
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
        """The weight (N, K) for rotated inputs and outputs. Applied to such a weight, it gives the original again."""
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
