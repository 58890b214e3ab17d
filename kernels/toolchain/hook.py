"""Builds the operators into wheels and editable installations; see `build.py`.

BGE_KERNELS in the environment says `none` to leave them out, or the platform that a wheel is for. Where they cannot be
built, the installation has none, and `bge_kernels/missing.txt` says why.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
from build import PLATFORMS, SOURCES, BuildError, build, system_compiler, this_platform

NONE = "none"
MISSING = "missing.txt"


class Hook(BuildHookInterface[Any]):
    """The operators of one wheel."""

    def dependencies(self) -> list[str]:
        """Zig's compiler, where this machine has none of its own."""
        wanted = os.environ.get("BGE_KERNELS")
        has_own = system_compiler() and not wanted
        unknown = not wanted and this_platform() is None
        return [] if wanted == NONE or has_own or unknown or self.target_name != "wheel" else ["ziglang==0.17.*"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library beside the sources where the installation is editable, else into the wheel."""
        if self.target_name != "wheel":
            return
        wanted = os.environ.get("BGE_KERNELS")
        editable = version == "editable"
        out = SOURCES if editable else Path(tempfile.mkdtemp(prefix="bge-kernels-"))
        if editable:
            for old in [*out.glob("library[0-9]*"), out / MISSING]:
                old.unlink(missing_ok=True)
        try:
            made = left_out() if wanted == NONE else build(out, wanted)
        except BuildError as error:
            if wanted in PLATFORMS:
                raise
            self.app.display_warning(f"bge-onnx: no operators: {error}")
            made = out / MISSING
            made.write_text(f"{error}\n", encoding="utf-8")
        else:
            local = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{PLATFORMS[wanted].tag if wanted else local}"
        if not editable:
            build_data["force_include"][str(made)] = f"bge_kernels/{made.name}"


def left_out() -> NoReturn:
    """The user wants none."""
    raise BuildError("BGE_KERNELS=none left them out when this was installed")
