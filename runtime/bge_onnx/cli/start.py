"""The entry point of `bge`: Ctrl-C and SIGTERM end it well from the first import on."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import NoReturn

STATUS_OF_SIGNAL = 128  # a shell's: plus the signal's number
SAID = {signal.SIGINT: "interrupted; nothing half-written was left"}

received: list[int] = []
"""Signals that told this process to end: imports and other code may make another error of what `end` raises."""


def end(number: int, _: FrameType | None) -> NoReturn:
    """Handle a signal that ends the process: half-written files are removed on the way out."""
    received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(STATUS_OF_SIGNAL + number)


def run(module: str) -> NoReturn:
    """Import a module and call its `main`. Ctrl-C ends with 130, SIGTERM with 143, from the first import on."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # a job in the background ignores Ctrl-C
            signal.signal(number, end)
    try:
        importlib.import_module(module).main()
    except SystemExit:
        raise
    except BaseException:
        if not received:
            raise
        if said := SAID.get(signal.Signals(received[0])):
            sys.stderr.write(f"{said}\n")
        sys.exit(STATUS_OF_SIGNAL + received[0])
    sys.exit(0)


def main() -> NoReturn:
    """Run the command."""
    run("bge_onnx.cli.main")
