"""A bundle's folder to what runs it: manifest, tokenizer, session, and how it was opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.bundle.hub import find_bundle
from bge_onnx.errors import BundleError
from bge_onnx.run.kernels import libraries
from bge_onnx.run.session import Session, devices_of
from bge_onnx.run.threads import resolve_threads
from bge_onnx.text.tokenizer import Tokenizer, check_special_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """How a bundle was opened: its folder, or its name and commit on the Hub, and the options of `Embedder.open`."""

    bundle: str | Path
    options: Mapping[str, Any]


def open_parts(
    bundle: str | Path,
    *,
    threads: int | None,
    devices: Sequence[int] | None,
    device_memory: int | None,
    revision: str | None,
    cache_dir: str | Path | None,
    verify: bool,
) -> tuple[Bundle, Tokenizer, Session, Opened]:
    """What `Embedder.open` and `Reranker.open` make of their arguments.

    Raises BundleError, ProviderError, InputError.
    """
    folder = find_bundle(bundle, revision=revision, cache_dir=cache_dir)
    found = Bundle.open(folder, verify=verify)
    libraries(found)
    path = found.folder / found.tokenizer
    tokenizer = Tokenizer.open(path, max_tokens=found.max_tokens)
    check_special_ids(tokenizer, found.special_ids, path)
    session = Session(found, resolve_threads(threads), devices_of(found, devices, device_memory), device_memory)
    from_hub = isinstance(bundle, str) and folder != Path(bundle)
    opened = Opened(
        bundle=bundle if from_hub else found.folder,
        options={
            "threads": threads,
            "devices": devices and tuple(devices),
            "device_memory": device_memory,
            **({"revision": folder.name, "cache_dir": cache_dir} if from_hub else {}),
        },
    )
    return found, tokenizer, session, opened


class OfBundle(Protocol):
    """An Embedder or a Reranker."""

    @property
    def bundle(self) -> Bundle: ...
    @classmethod
    def open(cls, bundle: str | Path, **options: Any) -> Self:
        """Open a bundle."""


def reopen(kind: type[OfBundle], opened: Opened, identity: str) -> OfBundle:
    """The Embedder or Reranker of a pickle. Raises BundleError: another bundle lies there now."""
    found = kind.open(opened.bundle, **opened.options)
    if found.bundle.identity != identity:
        raise BundleError(
            f"{opened.bundle}: expected the bundle that the pickled {kind.__name__} had, hash {identity[:16]}…, found "
            f"{found.bundle.identity[:16]}….\n    Give both sides the same bundle."
        )
    return found
