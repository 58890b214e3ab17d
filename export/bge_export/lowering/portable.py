"""Target `portable`: standard operators only, every body inlined as it is."""

from __future__ import annotations

from bge_export.lowering.lower import Swap

SWAPS: dict[str, Swap] = {}
