"""Put llama.cpp's converter beside the environment: the wheel lacks it, its source distribution has it."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PIN = next(
    line for line in Path(__file__).with_name("requirements.txt").read_text().split() if line.startswith("llama")
)

with tempfile.TemporaryDirectory() as temporary:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, PIN, "-d", temporary], check=True)
    (archive,) = Path(temporary).glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(temporary, filter="data")
    (source,) = Path(temporary).glob("*/vendor/llama.cpp")
    shutil.move(source, Path(sys.prefix) / "llama.cpp")
