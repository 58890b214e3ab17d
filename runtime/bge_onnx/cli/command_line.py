"""How commands begin and end: exit codes, signals, closed and full outputs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from bge_onnx.cli.start import SAID, STATUS_OF_SIGNAL, end, received
from bge_onnx.errors import BgeError, InputError

EXTRAS = {"export": ("torch", "transformers", "safetensors", "sentencepiece", "onnx", "onnx_ir", "scipy")}
"""The packages that an extra of bge-onnx brings, by its name; onnxruntime's own error is `onnx_runtime`'s."""

INTERRUPTED = STATUS_OF_SIGNAL + signal.SIGINT


def split_devices(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    """Numbers of GPUs with commas between."""
    try:
        return [int(number) for number in value.split(",")] if value else None
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between, as 0,1, found {value!r}") from None


def run_command(command: click.Command) -> NoReturn:
    """Run a command: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted, 143 told to end.

    SIGTERM ends it as an error would, so that half-written files are removed.
    """
    _write_any_character()
    sys.stdout = sys.stdout or ClosedOutput()
    before = signal.signal(signal.SIGTERM, end)
    try:
        result = _invoke(command)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # of --help and --version
        _leave(done.exit_code)
    except BrokenPipeError:  # `| head` has seen enough of stdout; what `report` says on stderr may be lost
        _leave(0)
    except BgeError as error:
        _leave(2, f"{type(error).__name__}: {error}")
    except ModuleNotFoundError as error:
        _leave(2, f"InstallationError: {missing_package(error)}")
    except click.ClickException as error:
        with contextlib.suppress(OSError, ValueError):
            error.show()
        _leave(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _leave(2, f"{place}expected to read and write, found: {error.strerror or error}.")
    except (click.Abort, KeyboardInterrupt):
        _leave(INTERRUPTED, SAID[signal.SIGINT])
    except Exception:
        if not received:
            raise
        _leave(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(result)


def report(text: str) -> None:
    """Say something on stderr. A stderr that is closed or full is no error: the results are still good."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def _invoke(command: click.Command) -> Any:
    """Like click's own `main`, except that it does not exit with 1 when the reader of a pipe closes it early."""
    name = Path(sys.argv[0]).name
    if f"_{name.upper().replace('-', '_')}_COMPLETE" in os.environ:  # a shell asks for what may follow
        command.main()
    with command.make_context(name, sys.argv[1:]) as context:
        return command.invoke(context)


class ClosedOutput(io.TextIOBase):
    """Stands in for a closed stdout: it refuses results, which Python would silently drop."""

    def writable(self) -> bool:
        """False: whoever has results for it can ask before the work."""
        return False

    def write(self, _: str, /) -> int:
        """Raise InputError."""
        raise InputError("stdout: expected a place for the results, found it closed.")


def _leave(code: int, said: str = "") -> NoReturn:
    """Say why, and exit. Output that cannot be written to stdout is dropped: Python would try again when it exits.

    If a signal was received, it is the reason, whatever error it was turned into.
    """
    if received:
        code, said = STATUS_OF_SIGNAL + received[0], SAID.get(signal.Signals(received[0]), "")
    if said:
        report(said)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _write_any_character() -> None:
    """Results on a pipe are UTF-8 whatever the system's encoding is; a terminal's is kept, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def missing_package(error: ModuleNotFoundError) -> str:
    """Which package is missing, and what brings it. Raises the error again: it is none of ours."""
    package = (error.name or "").split(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        raise error
    return f"{package}: expected the package, found none.\n    Install it: pip install 'bge-onnx[{extra}]'"
