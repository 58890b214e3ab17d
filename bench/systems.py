"""What `cpu.py` compares: each system, the peer that it belongs to, and the environment it runs in."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).with_name("peers")
ENVIRONMENTS = ROOT / ".venv-peers"
WORKER = Path(__file__).with_name("worker.py")


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
        """The beginning of its worker's command."""
        place = folder / self.peer if self.own else folder
        return [
            str(python_of(self.peer)),
            str(WORKER),
            str(adapter_of(self.peer)),
            self.variant,
            str(place),
            str(threads),
        ]


REFERENCE = System(name="sentence-transformers", peer="pytorch", variant="float32")
M3_REFERENCE = System(name="FlagEmbedding, 3 heads", peer="flagembedding", variant="float32")

BERT = (
    System(name="ours", peer="ours", variant="cpu-fp32"),
    System(name="ours int8", peer="ours", variant="cpu-int8", rounded=True),
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
M3 = (
    System(name="ours, dense", peer="ours", variant="cpu-fp32"),
    System(name="ours, 3 heads", peer="ours", variant="cpu-fp32 heads"),
    System(name="ours int8, dense", peer="ours", variant="cpu-int8", rounded=True),
    System(name="ours int8, 3 heads", peer="ours", variant="cpu-int8 heads", rounded=True),
    M3_REFERENCE,
    System(name="torch.onnx.export, 3 heads", peer="torch_onnx", variant="heads"),
    System(name="CTranslate2, dense", peer="ctranslate2", variant="float32", own=True),
    System(name="CTranslate2 int8, dense", peer="ctranslate2", variant="int8", rounded=True, own=True),
)


def adapter_of(peer: str) -> Path:
    return PEERS / peer / "adapter.py"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment; of this one where the peer has none."""
    return ENVIRONMENTS / peer / "bin/python" if (PEERS / peer / "requirements.txt").is_file() else Path(sys.executable)


def make_environment(peer: str) -> None:
    """The peer's environment, made once and again when its pins change. Raises CalledProcessError: pip failed."""
    requirements = PEERS / peer / "requirements.txt"
    stamp = ENVIRONMENTS / peer / "installed"
    if not requirements.is_file() or (stamp.is_file() and stamp.read_text() == requirements.read_text()):
        return
    print(f"setting up {ENVIRONMENTS.name}/{peer} (once)", file=sys.stderr)
    venv.create(ENVIRONMENTS / peer, with_pip=True, clear=True)
    pip = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "-r", str(requirements)], check=True)
    after = PEERS / peer / "after_install.py"
    if after.is_file():
        subprocess.run([str(python_of(peer)), str(after)], check=True)
    stamp.write_text(requirements.read_text())


def prepare(system: System, checkpoint: Path) -> None:
    """What the peer makes of the checkpoint, once for all its variants. Raises CalledProcessError: it cannot."""
    folder = checkpoint / system.peer
    if system.own and not (folder / "done").is_file():
        folder.mkdir(exist_ok=True)
        command = [str(python_of(system.peer)), str(WORKER), str(adapter_of(system.peer))]
        subprocess.run(
            [*command, "--prepare", str(checkpoint), str(folder)], check=True, capture_output=True, text=True
        )
        (folder / "done").touch()
