"""Token ids to vectors: what every way of embedding ends in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.run.batches import Batch, plan_batches
from bge_onnx.run.cuda import Outputs
from bge_onnx.run.session import KeysValues, Session
from bge_onnx.vectors.collect import collect
from bge_onnx.vectors.embeddings import Embeddings, VectorOptions


def vectors_of(
    bundle: Bundle,
    session: Session,
    token_ids: Sequence[NDArray[np.int64]],
    wanted: VectorOptions,
    past: KeysValues | None,
    budget_tokens: int | None,
    *,
    progress: bool | None,
) -> Embeddings:
    """Vectors of texts that are token ids (T,), in order, behind the keys and values of `past`.

    budget_tokens  of a batch; None for the layout's own
    progress       a bar on stderr; None for one only on a terminal and when it takes seconds
    """
    from tqdm import tqdm  # noqa: PLC0415 - a sixth of the package's import time

    batches = plan_batches(token_ids, budget_tokens=budget_tokens, layout=bundle.layout, pad_id=bundle.pad_id)
    silent = None if progress is None else not progress
    names = [wanted.output(head, bundle) for head in wanted.heads]
    with tqdm(total=len(token_ids), unit="text", disable=silent, delay=2, leave=False) as bar:

        def counted() -> Iterator[tuple[Batch, Outputs]]:
            for batch, arrays in session.run(batches, names, past):
                yield batch, arrays
                bar.update(len(batch.rows))

        return collect(counted(), count=len(token_ids), bundle=bundle, wanted=wanted)
