"""The machine's peak as ONNX Runtime reaches it, one large product in float32 and one of bytes: gemm.py THREADS."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
from onnx import TensorProto, helper

from bge_onnx.run.onnx_runtime import ort

SIZE = 1536
RUNS = 12


def gflops(operator: str, left: np.ndarray, right: np.ndarray, threads: int) -> float:
    """Billions of operations a second, the median of `RUNS` products of matrices (SIZE, SIZE); `right` is constant."""
    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}
    out = TensorProto.FLOAT if left.dtype == np.float32 else kinds["int32"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["y"])],
        "product",
        [helper.make_tensor_value_info("left", kinds[left.dtype.name], left.shape)],
        [helper.make_tensor_value_info("y", out, left.shape)],
        [
            helper.make_tensor(
                "right", helper.np_dtype_to_tensor_dtype(right.dtype), right.shape, right.tobytes(), raw=True
            )
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(RUNS + 2):
        start = time.perf_counter()
        session.run(None, {"left": left})
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(seconds[2:]) / 1e9


def main() -> None:
    rng, threads = np.random.default_rng(0), int(sys.argv[1])
    floats = rng.standard_normal((2, SIZE, SIZE)).astype(np.float32)
    left, right = rng.integers(0, 219, (SIZE, SIZE), dtype=np.uint8), rng.integers(-63, 64, (SIZE, SIZE), dtype=np.int8)
    found = {"float32": gflops("MatMul", *floats, threads), "int8": gflops("MatMulInteger", left, right, threads)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
