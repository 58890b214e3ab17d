"""A run that is recorded as a CUDA graph and replayed: its buffers stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_onnx.run.onnx_runtime import ort

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One size's buffers on the device, bound to the session, and the number of its CUDA graph."""

    session: ort.InferenceSession
    inputs: Mapping[str, ort.OrtValue]
    outputs: Mapping[str, ort.OrtValue]
    binding: ort.IOBinding
    options: ort.RunOptions

    @classmethod
    def make(
        cls, session: ort.InferenceSession, feeds: Feeds, outputs: Mapping[str, Sequence[int]], place: tuple[str, int],
        number: int,
    ) -> Recording:  # fmt: skip
        """Buffers for inputs of these shapes and float32 outputs of those, on a device ("cuda", 0)."""
        binding, options = session.io_binding(), ort.RunOptions()
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(values, *place) for name, values in feeds.items()}
        made = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, *place)
            for name, shape in outputs.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in made.items():
            binding.bind_ortvalue_output(name, value)
        options.add_run_config_entry("gpu_graph_id", str(number))
        return cls(session, inputs, made, binding, options)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The outputs for other values of the same shapes."""
        for name, values in feeds.items():
            self.inputs[name].update_inplace(values)
        self.session.run_with_iobinding(self.binding, self.options)
        return {name: value.numpy() for name, value in self.outputs.items()}
