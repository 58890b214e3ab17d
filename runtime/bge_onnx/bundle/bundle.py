"""The bundle: a folder with everything the runtime needs, and the only thing that passes from export to runtime."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bge_onnx.bundle import manifest
from bge_onnx.bundle.records import MANIFEST, NOT_IN_JSON, FileState, Manifest
from bge_onnx.errors import BundleError


class Bundle(Manifest):
    """A bundle as it was when it was opened: its manifest, and what may be asked of it."""

    __slots__ = ()

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Bundle:
        """Read and check a bundle. Sizes of all files are always compared, hashes with `verify=True`.

        Raises BundleError: no bundle there, a newer format, a manifest that was edited, a file missing or truncated.
        """
        bundle = manifest.open_manifest(cls, Path(folder), verify=verify)
        bundle.require_unchanged()  # by somebody who replaced it between two steps of opening
        return bundle

    @property
    def pad_id(self) -> int:
        """The token id that fills padded batches; never seen by the model's arithmetic."""
        return self.special_ids["pad"]

    @property
    def mapped(self) -> tuple[str, ...]:
        """The files with weights, which ONNX Runtime maps into memory and does not copy."""
        own = (MANIFEST, self.graph, self.tokenizer)
        folder = self.graph.rpartition("/")[0]
        return tuple(name for name in self.states if name not in own and name.rpartition("/")[0] == folder)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        record = dataclasses.asdict(self)
        for name in NOT_IN_JSON:
            del record[name]
        return record

    def require_unchanged(self) -> None:
        """Raise BundleError: the folder holds another bundle than the one that was opened, or none any more."""
        changed = []
        for name, state in self.states.items():
            try:
                same = FileState.of(self.folder / name) == state
            except OSError:
                same = False
            if not same:
                changed.append(name)
        if changed == [MANIFEST] and self._is_still_listed():
            return
        self._refuse(changed, "is another or gone")

    def _is_still_listed(self) -> bool:
        """Whether the rewritten manifest differs only in what was measured of the bundle."""
        try:
            return manifest.read_manifest(Bundle, self.folder / MANIFEST).identity == self.identity
        except BundleError:
            return False

    def require_unwritten(self, names: Iterable[str]) -> None:
        """Raise BundleError: somebody has written to one of these files, which are mapped into memory.

        A file that was removed or replaced is no harm: what was mapped stays.
        """
        written = []
        for name in names:
            state = self.states[name]
            try:
                found = os.stat(self.folder / name)  # noqa: PTH116 - twice as fast as Path.stat, before and after each run
            except OSError:
                continue
            same = (found.st_dev, found.st_ino) == (state.device, state.inode)
            if same and (found.st_size, found.st_mtime_ns) != (state.size_bytes, state.modified_ns):
                written.append(name)
        self._refuse(written, "was written to")

    def _refuse(self, names: list[str], what: str) -> None:
        if names:
            raise BundleError(
                f"{self.folder}: expected the bundle that was opened, found that {', '.join(names[:3])} {what}.\n"
                "    Open the bundle again. To replace one, put the new folder in its place as a whole, as "
                "`bge-export run --force` does."
            )
