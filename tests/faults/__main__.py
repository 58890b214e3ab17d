"""Run the campaign and print its counts; exit 1 where there is a fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.request import Request
from faults.bundles import change_open_files, damage_tokenizers, edit_manifests
from faults.exports import compete, damage_checkpoints, kill
from faults.outcomes import Outcomes
from tiny import write_checkpoint, write_m3_bundle, write_m3_checkpoint


def campaign(folder: Path, size: float) -> Iterator[tuple[str, Outcomes]]:
    """Every part of the campaign with its outcomes; `size` 1 is the whole."""

    def count(whole: int) -> int:
        return max(7, round(size * whole))

    torch.set_num_threads(1)  # forked processes do not have the threads of a pool
    checkpoint = write_checkpoint(folder / "checkpoint")
    yield "killed", kill(checkpoint, folder, count(100), force=False)
    yield "killed with --force", kill(checkpoint, folder, count(100), force=True)
    yield "two exporters", compete(checkpoint, folder, count(20))
    yield "damaged checkpoints", damage_checkpoints(checkpoint, folder, count(300))
    bundles = [folder / f"bundle{seed}" for seed in (0, 1)]
    for seed, bundle in enumerate(bundles):
        other = write_checkpoint(folder / f"checkpoint{seed}", seed=seed)
        export(Request(model="tiny", target="cpu-fp32", checkpoint=other, options=Options(pooling="cls")), bundle)
    yield "files changed", change_open_files(*bundles, folder, count(60))
    write_m3_bundle(write_m3_checkpoint(folder / "m3"), folder / "m3_bundle")
    yield "damaged tokenizers", damage_tokenizers(folder / "m3_bundle", folder, count(1000))
    yield from edit_manifests(folder / "m3_bundle", folder, count(6000))


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Damage everything at random, and count.")
    parser.add_argument("--size", type=float, default=1.0, help="of the campaign; 1 is the whole, some minutes")
    size, faults = parser.parse_args().size, 0
    with tempfile.TemporaryDirectory(prefix="bge-faults-") as folder:
        start = time.perf_counter()
        for name, outcomes in campaign(Path(folder), size):
            print(f"{name:22} {time.perf_counter() - start:6.1f} s   {outcomes}", flush=True)
            for outcome, example in outcomes.faults.items():
                print(f"    FAULT {outcome}: {example[:1500]}", flush=True)
            faults += len(outcomes.faults)
            start = time.perf_counter()
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
