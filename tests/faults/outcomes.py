"""What is counted, and child processes that do one thing and tell how it ended."""

from __future__ import annotations

import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from bge_onnx.errors import BgeError

FAULTS = ("traceback", "lost", "other vectors", "accepted", "half", "left behind", "signal")
"""Words with which the outcomes that must not be begin."""

PATIENCE_S = 60
"""A child that takes longer waits for something that never comes."""


@dataclass(slots=True)
class Outcomes:
    """How often each outcome was seen, and an example of every fault."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: str, example: object = "") -> None:
        """Count an outcome."""
        self.counts[outcome] += 1
        self.examples.setdefault(outcome, str(example))

    @property
    def faults(self) -> dict[str, str]:
        """The outcomes that must not be, each with an example."""
        return {outcome: example for outcome, example in self.examples.items() if outcome.startswith(FAULTS)}

    def __str__(self) -> str:
        return ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.counts.items()))


def ended(do: Callable[[], str]) -> tuple[str, str]:
    """What `do` says of its end, or how it was refused: an outcome and an example."""
    try:
        return do(), ""
    except BgeError as error:
        text = str(error)
        return ("refused", text) if len(text) < 4000 else (f"traceback as long as {len(text)} characters", text[:200])
    except BaseException as error:  # noqa: BLE001 - tokenizers' PanicException is no Exception
        return f"traceback {type(error).__name__}", "".join(traceback.format_exception(error))[-1500:]


class Child:
    """A forked process that does one thing. The parent has imported all there is, so it begins at once."""

    def __init__(self, do: Callable[[], str]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            signal.alarm(PATIENCE_S)
            os.close(self._read)
            outcome, example = ended(do)
            with os.fdopen(write, "w", encoding="utf-8") as pipe:
                pipe.write(f"{outcome}\n{example}")
            os._exit(0)
        os.close(write)

    def kill(self) -> None:
        """End it as nothing can prevent."""
        os.kill(self.pid, signal.SIGKILL)

    def running(self) -> bool:
        """Whether it has not ended; `end` is called all the same."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def end(self) -> tuple[str, str]:
        """Wait for its end: an outcome and an example."""
        with os.fdopen(self._read, encoding="utf-8", errors="replace") as pipe:
            outcome, _, example = pipe.read().partition("\n")
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            names = {signal.SIGKILL: "killed", signal.SIGALRM: f"signal: not ended after {PATIENCE_S} s"}
            return names.get(signal.Signals(number), f"signal {number}"), example
        return outcome or "traceback without a word", example
