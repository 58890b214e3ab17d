"""What a graph is to give."""

from __future__ import annotations

from dataclasses import dataclass

from bge_export.checkpoint.modules import Step
from bge_onnx.bundle.heads import of_pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOutputs:
    """What a graph is to give.

    steps         of the pooled vector, before it is normalised
    raw           also the vectors before normalisation, as outputs of their own
    token_states  also the last layer's states (B, T, D)
    prune         compute the last layer for the CLS token alone where `dense` needs no more
    packed        texts stand one after another, without padding
    types         tokens have types: of a pair, which of the two texts they belong to
    whole         a decoder takes no prefix: texts are computed from their first token on
    """

    pooling: str
    normalize: bool
    steps: tuple[Step, ...] = ()
    heads: tuple[str, ...] = ("dense",)
    raw: bool = False
    token_states: bool = False
    prune: bool = False
    packed: bool = False
    whole: bool = False
    types: bool = False

    @property
    def of_pooled(self) -> str:
        """The head that the pooled vector is."""
        return of_pooled(self.heads)

    @property
    def prunes(self) -> bool:
        """Whether `dense` comes from the CLS token alone."""
        return self.prune and self.pooling == "cls"
