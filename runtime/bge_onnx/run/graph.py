"""What a bundle's graph must have, by its manifest."""

from __future__ import annotations

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.graph_names import CU_SEQLENS, LAST_PLACES, PAST_KEYS, POOLED_ROWS, TEXT_STARTS
from bge_onnx.bundle.heads import HEADS
from bge_onnx.errors import BundleError
from bge_onnx.files.json_file import shortened
from bge_onnx.run.onnx_runtime import ort

LAYOUT_OF = {"attention_mask": "padded", CU_SEQLENS: "packed", TEXT_STARTS: "packed", LAST_PLACES: "whole"}
"""The inputs that tell how texts share a batch; a graph for texts of one length has none of these."""


def check_graph(bundle: Bundle, session: ort.InferenceSession) -> None:
    """Raise BundleError: the graph has other inputs or outputs than the manifest says.

    Outputs that stand for each other would give the vectors of another head in silence.
    """
    inputs = {node.name for node in session.get_inputs()}
    widths = {node.name: node.shape[-1] for node in session.get_outputs()}
    wanted = {output: bundle.dims[head] for head, output in bundle.outputs.items() if HEADS[head].gives != "weights"}
    wanted |= {output: bundle.dims[head] for head, output in bundle.raw_outputs.items()}
    faults = [
        f"output {name} of width {width}, found {widths.get(name, 'none')}"
        for name, width in wanted.items()
        if widths.get(name) != width
    ]
    others = [output for head, output in bundle.outputs.items() if HEADS[head].gives == "weights"]
    others += [bundle.token_states] if bundle.token_states else []
    faults += [f"output {name}, found none" for name in others if name not in widths]
    layouts = {LAYOUT_OF[name] for name in inputs if name in LAYOUT_OF}
    layouts = layouts or ({"whole"} if POOLED_ROWS in inputs else {"equal"})
    if layouts != {bundle.layout} or "input_ids" not in inputs:
        faults.append(f"inputs of the layout {bundle.layout}, found {', '.join(sorted(inputs))}")
    if PAST_KEYS in inputs and not bundle.causal:
        faults.append("a model that looks both ways, found inputs for a prefix")
    if faults:
        raise BundleError(
            f"{bundle.folder / bundle.graph}: expected {shortened('; '.join(faults))}.\n"
            "    The manifest is another graph's. Export the bundle again."
        )
