"""The entry point of `bge`: Ctrl-C is one line from the first import on."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT


def run(module: str) -> NoReturn:
    """Import a module and call its `main`. Ctrl-C ends with 130, also where an import makes another error of it."""
    pressed: list[int] = []

    def note(number: int, _: FrameType | None) -> NoReturn:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, note)
    try:
        importlib.import_module(module).main()
    except SystemExit:
        raise
    except BaseException:
        if not pressed:
            raise
        sys.stderr.write("interrupted; nothing half-written was left\n")
        sys.exit(INTERRUPTED)
    sys.exit(0)


def main() -> NoReturn:
    """Run the command."""
    run("bge_onnx.cli")
