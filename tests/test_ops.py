"""Every operation's body against PyTorch, and what lowering makes of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bge_export.graph import ops
from bge_export.lowering.lower import lower
from bge_export.lowering.targets import TARGETS
from bge_onnx.run.onnx_runtime import ort

B, T, D, H = 3, 7, 24, 4
K = D // H
LENGTHS = torch.tensor([7, 4, 1])
MASK = (torch.arange(T)[None] < LENGTHS[:, None]).long()
FULL = torch.ones_like(MASK)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def run(op, inputs, attributes=None, *, target="portable"):
    """The result of one call, lowered for a target and run by ONNX Runtime; also the operators it became."""
    graph = ops.Graph("test")
    values = {}
    for name, tensor in inputs.items():
        value = graph.input(name, [f"{name}{axis}" for axis in range(tensor.ndim)])
        value.type = ir.TensorType(ir.DataType.FLOAT if tensor.is_floating_point() else ir.DataType.INT64)
        values[name] = value
    y = graph.call(op, "module", *values.values(), attributes=attributes)
    model = graph.finish({"y": (y, [f"y{axis}" for axis in range(4)])})
    model.graph.outputs[0].shape = None
    lower(model, TARGETS["bert"][target].lowering(None, None).swaps)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {value.name: inputs[value.name].numpy() for value in model.graph.inputs}
    return session.run(None, feeds)[0], [node.op_type for node in model.graph]


def attention(q, k, v, bias):
    q, k, v = (x.view(B, -1, H, K).transpose(1, 2) for x in (q, k, v))
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return context.transpose(1, 2).reshape(B, -1, D)


ATTENTION = {"num_heads": H, "heads": [0, 0, H, K], "scale": K**-0.5}


@pytest.mark.parametrize("queries", [T, 1])
def test_attention_hides_padding(queries):
    """The portable body gives masked tokens no weight, also for a single query."""
    q, k, v = random(B, queries, D), random(B, T, D), random(B, T, D) + 1
    bias = torch.where(MASK[:, None, None] == 0, torch.finfo(torch.float32).min, 0.0)
    found, _ = run("attention", {"q": q, "k": k, "v": v, "bias": bias}, ATTENTION)
    wanted = attention(q, k, v, (MASK == 1)[:, None, None])
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("queries", [T, 1])
def test_attention_on_the_cpu_has_no_mask(queries):
    """For cpu-fp32 attention becomes one MultiHeadAttention without a mask."""
    q, k, v = random(B, queries, D), random(B, T, D), random(B, T, D)
    inputs = {"q": q, "k": k, "v": v, "bias": torch.zeros(B, 1, 1, T)}
    found, operators = run("attention", inputs, ATTENTION, target="cpu-fp32")
    np.testing.assert_allclose(found, attention(q, k, v, None), atol=2e-6)
    assert operators == ["MultiHeadAttention"]


def test_attention_bias():
    """Padding gets the lowest float, tokens get zero: (B, T) -> (B, 1, 1, T)."""
    found, _ = run("attention_bias", {"attention_mask": MASK})
    wanted = torch.where(MASK == 0, torch.finfo(torch.float32).min, 0.0)[:, None, None]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("target", "mask"), [("portable", MASK), ("portable", FULL), ("cpu-fp32", FULL)])
def test_mean(target, mask):
    """The mean over a text's tokens, padding left out."""
    hidden = random(B, T, D)
    wanted = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    found, _ = run("mean", {"hidden": hidden, "attention_mask": mask}, target=target)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("target", "mask"), [("portable", MASK), ("portable", FULL), ("cpu-fp32", FULL)])
def test_last_token(target, mask):
    """The state of each text's last real token, exactly."""
    hidden = random(B, T, D)
    found, _ = run("last_token", {"hidden": hidden, "attention_mask": mask}, target=target)
    np.testing.assert_array_equal(found, hidden[torch.arange(B), mask.sum(1) - 1])


def test_l2_normalize():
    """Rows of length one; a zero row stays zero, as torch.nn.functional.normalize leaves it."""
    x = random(B, D)
    x[1] = 0
    found, _ = run("l2_normalize", {"x": x})
    np.testing.assert_allclose(found, torch.nn.functional.normalize(x, dim=-1), atol=1e-7)


def test_gelu_is_the_exact_one():
    """GELU is the erf form, which BGE was trained with, not its tanh approximation."""
    x = random(B, T, D) * 3
    found, _ = run("gelu", {"x": x})
    np.testing.assert_allclose(found, torch.nn.functional.gelu(x), atol=1e-6)
    assert np.abs(found - torch.nn.functional.gelu(x, approximate="tanh").numpy()).max() > 1e-4


def test_embeddings_add_the_position_by_index():
    """Row t of the position table is added to token t."""
    ids, words, positions = torch.tensor([[3, 1, 2]]), random(5, D), random(9, D)
    found, _ = run("embeddings", {"ids": ids, "words": words[ids], "positions": positions})
    np.testing.assert_array_equal(found, words[ids] + positions[:3])


def test_every_operation_has_a_body_in_standard_operators():
    """No body of a model calls anything outside the standard domain, so the unlowered graph runs anywhere."""
    functions = ops.functions(ops.MODEL_BODIES)
    assert len(functions) == len({function.name for function in functions}) > 10
    assert {node.domain for function in functions for node in function} == {""}
