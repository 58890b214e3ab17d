"""Give a checkpoint the two heads of BGE-M3, untrained but meaningful: python scripts/three_heads.py CHECKPOINT OUT.

ColBERT rows are the model's own token states (the identity), and every token weighs the same in a sparse vector:
lexical scores count shared tokens. In a bundle of BAAI/bge-m3 its trained heads do this.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.copytree(source, out, dirs_exist_ok=True)
    width = json.loads((out / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    torch.save({"weight": torch.eye(width), "bias": torch.zeros(width)}, out / "colbert_linear.pt")
    torch.save({"weight": torch.zeros(1, width), "bias": torch.full((1,), 0.3)}, out / "sparse_linear.pt")


if __name__ == "__main__":
    main()
