"""Targets `cpu-int8` and `cpu-int4` of decoders: weights of 8 or 4 bits in blocks with a scale each, float32 between.

A row of the weight (out, in) is cut into blocks of inputs; a block is scaled so that its largest value is the
lowest integer, and rounded. Nothing is calibrated. Products are ONNX Runtime's MatMulNBits, whose weights stay packed
in memory; the word table is read by GatherBlockQuantized.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.checkpoint.weights import Array, LazyRows
from bge_export.lowering import cpu_fp32
from bge_export.lowering.initializers import add_together
from bge_export.lowering.lower import Lowering

BLOCK = 64
"""Weights in a block. ONNX Runtime keeps three numbers for each: in blocks of 32 a 4-bit model takes a quarter more
memory.

On one core of a Zen 4 blocks of 128 are 1.25 (8 bits) and 1.35 times (4 bits) faster, and err more: activations are
rounded in the same blocks."""

WORD_BLOCK = 32
"""Of the word table. Its scales are read from the file beside the rows that a text needs."""

CHUNK_ROWS = 4096
"""Rows that are quantised at a time: a word table is larger than memory in float32."""

ACCURACY_LEVEL = 4
"""MatMulNBits quantises activations to 8 bits, each row and block by itself: a row's result depends on no other row.

Its kernels take two rows at a time and would sum an odd last row in another order, so that row gets a partner."""

WORD_TABLES = ("embed_tokens.weight", "word_embeddings.weight")
TINY = np.finfo(np.float32).tiny  # below, an inverse overflows: such a block is zeros

Packed = NDArray[np.uint8]


def lowering(bits: int) -> Lowering:
    """The lowering of a target with weights of `bits` bits; the word table has 8 in both."""
    swaps = {
        **cpu_fp32.SWAPS,
        "project": lambda call: _project(call, bits),
        "lookup": lookup,
    }
    return Lowering(swaps, partial(rounded, bits=bits), rounded_inputs)


def quantize(rows: Array, bits: int, block: int = BLOCK) -> tuple[Packed, Array]:
    """Blocks of integers around 2 ** (bits - 1) and their scales.

    rows     (N, K)
    returns  (N, blocks, block × bits / 8) uint8, two 4-bit values a byte, the first in its low half; (N, blocks)
    """
    blocks = _blocks(rows, block)
    scales = _scales(blocks, bits)
    middle = 1 << (bits - 1)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > TINY)
    integers = np.clip(np.rint(blocks * inverse[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        integers = integers[..., 0::2] | integers[..., 1::2] << 4
    return integers, scales


def rounded(name: str, weight: Array, bits: int) -> Array:
    """What the graph computes with in the place of a checkpoint's `weight`, (N, K) or a norm's (K,)."""
    if weight.ndim != 2:
        return weight
    bits, block = (8, WORD_BLOCK) if name.endswith(WORD_TABLES) else (bits, BLOCK)
    integers, scales = quantize(weight, bits, block)
    if bits == 4:
        integers = np.stack([integers & 15, integers >> 4], axis=-1).reshape(*integers.shape[:2], -1)
    values = (integers.astype(np.float32) - np.float32(1 << (bits - 1))) * scales[..., None]
    found: Array = values.reshape(len(weight), -1)[:, : weight.shape[1]]
    return found


def rounded_inputs(_: str, rows: Array) -> Array:
    """What MatMulNBits computes with in the place of a module's input rows (N, K): blocks of 8 bits."""
    blocks = _blocks(rows, BLOCK)
    steps = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127), TINY)
    found: Array = (np.rint(blocks / steps) * steps).reshape(len(rows), -1)[:, : rows.shape[1]]
    return found


def _blocks(rows: Array, block: int) -> Array:
    count, width = rows.shape
    return np.pad(rows, ((0, 0), (0, -width % block))).reshape(count, -1, block)


def _scales(blocks: Array, bits: int) -> Array:
    """For each block, its value of the largest magnitude, sign included, divided by the lowest integer."""
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    scales: Array = np.where(high > -low, high, low) / np.float32(-(1 << (bits - 1)))
    return scales


def _project(call: ir.Node, bits: int) -> ir.Node:
    x, weight = call.inputs
    matrix = _matrix(weight)
    outputs, inputs = matrix.shape.numpy()
    packed, scales = _initializers(call, matrix, bits)
    attributes = {
        "K": inputs,
        "N": outputs,
        "bits": bits,
        "block_size": BLOCK,
        "accuracy_level": ACCURACY_LEVEL,
    }
    return ir.node("nbits_project", [x, packed, scales], attributes, domain=call.domain)


def lookup(call: ir.Node) -> ir.Node:
    """Rows of a word table with 8 bits a number."""
    input_ids, table = call.inputs
    packed, scales = _initializers(call, _matrix(table), 8, flat=True)
    attributes = {"bits": 8, "block_size": WORD_BLOCK, "gather_axis": 0, "quantize_axis": 1}
    return ir.node("GatherBlockQuantized", [packed, input_ids, scales], attributes, domain="com.microsoft")


def _matrix(value: ir.Value | None) -> LazyRows:
    assert value is not None
    assert isinstance(value.const_value, LazyRows)
    return value.const_value


def _initializers(call: ir.Node, matrix: LazyRows, bits: int, *, flat: bool = False) -> tuple[ir.Value, ir.Value]:
    """The quantised matrix and its scales as weights of the graph; read and rounded when they are written.

    flat  blocks one after another, (N, K), as GatherBlockQuantized has them
    """
    count, width = matrix.shape.numpy()
    block = WORD_BLOCK if flat else BLOCK
    blocks = -(-width // block)
    block_bytes = block * bits // 8
    packed_shape = (count, width) if flat else (count, blocks, block_bytes)

    def compute() -> tuple[Packed, Array]:
        integers = np.empty((count, blocks, block_bytes), dtype=np.uint8)
        scales = np.empty((count, blocks), dtype=np.float32)
        for start in range(0, count, CHUNK_ROWS):
            some = slice(start, min(count, start + CHUNK_ROWS))
            integers[some], scales[some] = quantize(matrix.rows(some.start, some.stop), bits, block)
        return np.ascontiguousarray(integers.reshape(count, -1)[:, :width]) if flat else integers, scales

    parts = (
        (f"{matrix.name}.q{bits}", ir.DataType.UINT8, packed_shape),
        (f"{matrix.name}.scales", ir.DataType.FLOAT, (count, blocks)),
    )
    packed, scales = add_together(call, parts, compute)
    return packed, scales
