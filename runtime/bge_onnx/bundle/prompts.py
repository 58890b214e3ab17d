"""Names of a manifest's prompts beside "query" and "passage", which stand in front of the two."""

from __future__ import annotations

TASK = "task"
"""The template of a task's instruction and a query, where a model has one."""

BETWEEN, BEHIND = "between", "behind"
"""Of a language model that reranks: what stands between the two texts, and what asks about them."""
