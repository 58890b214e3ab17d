"""What is known of a target by its name alone; `bge_export.lowering.targets` says how one is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """Facts of one target.

    bits     that matrices are rounded to; None where they keep their floating-point type
    records  small batches are recorded as CUDA graphs and replayed, where texts are packed
    """

    bits: int | None = None
    records: bool = True


FACTS: dict[str, TargetFacts] = {
    "cpu-fp32": TargetFacts(),
    "cpu-int8": TargetFacts(bits=8),
    "portable": TargetFacts(),
    "cpu-int4": TargetFacts(bits=4),
    "cuda-fp32": TargetFacts(records=False),  # for comparing, where speed counts less than memory
    "cuda-fp16": TargetFacts(),
    "cuda-bf16": TargetFacts(),
}
"""By name, in the order in which `--help` shows them."""


def facts_of(target: str) -> TargetFacts:
    """The facts of a target. A target that this version does not know has those of most targets."""
    return FACTS.get(target, TargetFacts())
