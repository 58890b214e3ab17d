"""The command `bge-export`: results on stdout, progress and reports on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bge_export.checkpoint.catalog import ENTRIES
from bge_export.cli.evaluate import evaluate
from bge_onnx.bundle.heads import FIRST, HEADS, SCORE
from bge_onnx.bundle.targets import FACTS
from bge_onnx.cli.command_line import report, run_command

if TYPE_CHECKING:
    from bge_onnx.bundle.bundle import Bundle
    from bge_onnx.bundle.records import Parity


def _heads(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    heads = None if value is None else tuple(head.strip() for head in value.split(","))
    unknown = [head for head in heads or () if head not in HEADS]
    if unknown or (heads is not None and heads != (SCORE,) and (FIRST not in heads or SCORE in heads)):
        raise click.BadParameter(
            f"expected score, or dense, and sparse and colbert if wanted, with commas between; found {value!r}"
        )
    return heads


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bge-onnx")
def cli() -> None:
    """Turn BGE checkpoints into bundles for ONNX Runtime, and prove that they are right.

    \b
    Example:
      bge-export run BAAI/bge-small-en-v1.5 --target cpu-fp32 --out bge-small
      bge-export check bge-small
      bge embed bge-small texts.txt --out vectors.npz
    """


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_models(*, as_json: bool) -> None:
    """List the models known by name, with sizes and heads.

    \b
    Example:
      bge-export list
    """
    rows = [
        {
            "model": entry.repository,
            "parameters": entry.parameters,
            "layers": entry.config["num_hidden_layers"],
            "dims": entry.config["hidden_size"],
            "max_tokens": entry.max_tokens,
            "heads": list(entry.heads),
            "licence": entry.licence,
            "revision": entry.revision,
        }
        for entry in ENTRIES
    ]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = [list(rows[0])]
    for row, entry in zip(rows, ENTRIES, strict=True):
        shown = {"parameters": f"{entry.parameters / 1e6:.1f} M", "heads": ", ".join(entry.heads)}
        table.append([str(value) for value in {**row, **shown, "revision": entry.revision[:8]}.values()])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@cli.command()
@click.argument("model")
@click.option("--target", type=click.Choice([*FACTS]), default="cpu-fp32", show_default=True, help="What to lower for.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder; must not exist.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Read a local folder."
)
@click.option("--revision", help="Branch, tag or commit on the Hub, instead of the pinned one.")
@click.option(
    "--random-weights", "seed", type=int, metavar="SEED",
    help="The model's true architecture with random weights from this seed, for tests and speed.",
)  # fmt: skip
@click.option("--pooling", type=click.Choice(["cls", "mean", "last"]), help="The pooling, if no file says it.")
@click.option("--query-prompt", help="Text in front of queries, instead of the model's own.")
@click.option("--passage-prompt", help="Text in front of passages, instead of the model's own.")
@click.option("--max-tokens", type=click.IntRange(min=3), help="Cut texts here, instead of the model's own limit.")
@click.option("--lower-case/--keep-case", default=None, help="What to do where the checkpoint's files disagree.")
@click.option(
    "--heads", callback=_heads,
    help="Out of dense,sparse,colbert; all that the checkpoint has by default. Or score: the logit of Yes.",
)  # fmt: skip
@click.option(
    "--head-files", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --random-weights: take the heads' files from this folder.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --random-weights of a Mistral: its tokenizer.model, instead of an untrained one.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
    help="For cpu-fp32 of encoders: fp16 is half the file; products stay in float32.",
)  # fmt: skip
@click.option(
    "--calibrate", "calibration", metavar="FILE|random|none",
    help="For cpu-int8 of encoders: a file of texts, one per line. Weights are rounded so that errors on these texts "
    "are smallest. random, the default, takes random token ids. none rounds each weight by itself, which is faster.",
)  # fmt: skip
@click.option(
    "--kernels", type=click.Choice(["none", "auto"]), default="auto", show_default=True,
    help="For cpu-int8 of encoders: auto takes bge-onnx's own operators where this installation has them. They are "
    "faster, and whoever opens the bundle needs them. none takes standard operators.",
)  # fmt: skip
@click.option(
    "--activations", type=click.Choice(["8", "7"]), default="8", show_default=True,
    help="For cpu-int8 of encoders: with 7, linear layers round their inputs to 7 bits. That is faster on CPUs with "
    "AVX2 and no VNNI, and errs more.",
)  # fmt: skip
@click.option(
    "--no-check", is_flag=True, help="Do not compare with PyTorch: for CUDA bundles, on a machine without CUDA."
)
@click.option("--force", is_flag=True, help="Replace a bundle that is at --out already.")
def run(
    model: str,
    target: str,
    out: Path,
    checkpoint: Path | None,
    revision: str | None,
    seed: int | None,
    pooling: str | None,
    query_prompt: str | None,
    passage_prompt: str | None,
    max_tokens: int | None,
    lower_case: bool | None,
    heads: tuple[str, ...] | None,
    head_files: Path | None,
    tokenizer: Path | None,
    weights: str,
    calibration: str | None,
    kernels: str,
    activations: str,
    no_check: bool,
    force: bool,
) -> None:
    """Export MODEL to a bundle and check it against PyTorch.

    MODEL is a known name (`bge-export list`) or any Hub repository OWNER/NAME with a BERT, XLM-R, Mistral or Gemma2
    embedding model.
    With --checkpoint, the folder's own files decide. MODEL is then only the bundle's name, unless it is a known name.

    \b
    Examples:
      bge-export run BAAI/bge-small-en-v1.5 --out bge-small
      bge-export run my-model --checkpoint ./my-model --target portable --out my-model-onnx
      bge-export run bge-base-en --random-weights 0 --out base-random
      bge-export run BAAI/bge-m3 --heads dense,sparse --out bge-m3
    """
    if seed is not None and checkpoint is not None:
        raise click.UsageError("--random-weights and --checkpoint exclude each other")
    if (head_files or tokenizer) and seed is None:
        raise click.UsageError(
            "--head-files and --tokenizer go with --random-weights; a checkpoint's folder holds its own"
        )
    if activations == "7" and kernels == "none":
        raise click.UsageError("--activations 7 goes with --kernels auto: standard operators are not faster on 7 bits")
    import bge_kernels
    from bge_export.checkpoint.recipe import Options
    from bge_export.export import export
    from bge_export.lowering.int8 import calibrate
    from bge_export.request import Request

    options = Options(
        pooling=pooling,  # type: ignore[arg-type]  # click has checked it
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        max_tokens=max_tokens,
        lower_case=lower_case,
        heads=heads,
    )
    request = Request(
        model=model,
        target=target,
        checkpoint=checkpoint,
        revision=revision,
        seed=seed,
        head_files=head_files,
        tokenizer=tokenizer,
        weights=weights,  # type: ignore[arg-type]  # click has checked it
        calibration=calibrate.read(calibration) if calibration else None,
        kernels="auto" if kernels == "auto" else None,
        activations=int(activations),  # type: ignore[arg-type]  # click has checked it
        check=not no_check,
        options=options,
    )
    report(f"exporting {model} for {target}")
    bundle = export(request, out, force=force, progress=sys.stderr.isatty())
    if bundle.activations:
        here = bge_kernels.library() or f"none: {bge_kernels.why_missing()}"
        report(f"operators  {', '.join(bundle.kernels) or ('none' if kernels == 'none' else here)}")
    _wrote(bundle)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of the weights."
)
@click.option(
    "--head-files", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the heads' files that --random-weights were given.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The tokenizer.model that --random-weights were given.",
)  # fmt: skip
@click.option("--calibrate", "calibration", metavar="FILE", help="The texts that the bundle was calibrated with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def check(
    bundle: Path,
    checkpoint: Path | None,
    head_files: Path | None,
    tokenizer: Path | None,
    calibration: str | None,
    *,
    as_json: bool,
) -> None:
    """Compare a bundle with float32 PyTorch; exit 1 when an error is over its limit.

    Weights from the Hub are found again without help, and random weights are made again. Others need --checkpoint.

    \b
    Examples:
      bge-export check bge-small
      bge-export check my-bundle --checkpoint ./my-model --json
    """
    from bge_export.lowering.int8 import calibrate
    from bge_export.recheck import check_bundle

    texts = calibrate.read(calibration) if calibration else None
    parity = check_bundle(bundle, checkpoint, head_files, tokenizer, texts, progress=sys.stderr.isatty())
    if as_json:
        heads = {
            head: {**dataclasses.asdict(found), "used": found.max_error / found.limit}
            for head, found in parity.heads.items()
        }
        record = {"passed": parity.passed, "heads": heads, "tokenizer_mismatches": parity.tokenizer_mismatches}
        click.echo(json.dumps({**record, "texts": parity.texts, "reference": parity.reference}))
    else:
        _report(parity)
    sys.exit(0 if parity.passed else 1)


cli.add_command(evaluate)


def _wrote(bundle: Bundle) -> None:
    if bundle.parity:
        _report(bundle.parity)
    size_mb = sum(record.size_bytes for record in bundle.files.values()) / 1e6
    report(f"wrote {bundle.folder}: {len(bundle.files) + 1} files, {size_mb:,.1f} MB")


def _report(parity: Parity) -> None:
    report(f"{parity.texts} texts against {parity.reference}")
    differ = parity.tokenizer_mismatches
    report(f"token ids  {f'{differ} texts differ' if differ else 'equal'}")
    report("head       max error   at                     limit     used     measure")
    for head, found in parity.heads.items():
        where = f"text {found.text} ({found.tokens} tokens)"
        used = 100 * found.max_error / found.limit
        verdict = "passed" if found.passed else "FAILED"
        report(
            f"{head:10} {found.max_error:.1e}     {where:22} {found.limit:.1e}   {used:3.0f} %   {verdict}   "
            f"{found.measure}"
        )


def main() -> None:
    """Run the command."""
    run_command(cli)
