"""The heads that a model may have: what each gives of a text. Everything that differs from head to head asks here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Gives = Literal["vector", "rows", "weights", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One kind of output.

    gives  "vector", one a text; "rows", a vector a token; "weights", a number a token, by token id; "score", a number a
           pair of texts
    """

    name: str
    gives: Gives

    @property
    def is_vectors(self) -> bool:
        """Whether it gives vectors, which have a width, can be cut, and are normalised or not."""
        return self.gives in ("vector", "rows")


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head(name="dense", gives="vector"),
        Head(name="sparse", gives="weights"),
        Head(name="colbert", gives="rows"),
        Head(name="score", gives="score"),
    )
}
"""By name, in the order that results show. Every bundle has the first, except rerankers, which have the last."""

FIRST = next(iter(HEADS))

SCORE = "score"
"""What a reranker gives of a query and a passage."""


def of_pooled(heads: Iterable[str]) -> str:
    """The one of `heads` that is made of a text's pooled vector; "" where there is none."""
    return next((head for head in heads if head in HEADS and HEADS[head].gives in ("vector", "score")), "")
