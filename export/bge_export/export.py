"""From a checkpoint to a bundle: read, build, lower, write, prove."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_export import bundle_writer, catalog, check, checkpoint_tokenizer, hub, random_checkpoint
from bge_export.checkpoint import Options, Recipe, read_recipe
from bge_export.config import parse_config, read_json
from bge_export.folder import atomic_folder, require_free
from bge_export.lowering import lower
from bge_export.lowering.targets import TARGETS, Target
from bge_export.models import MODELS
from bge_export.weights import Weights
from bge_onnx import Bundle, BundleError, CheckpointError, Embedder
from bge_onnx.bundle import FORMAT_VERSION, Parity, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export: a known or Hub name, or a local folder, or random weights of a known architecture."""

    model: str
    target: str
    checkpoint: Path | None = None
    revision: str | None = None
    seed: int | None = None
    options: Options = dataclasses.field(default_factory=Options)


def export(request: Request, out: Path, *, force: bool = False, progress: bool = False) -> Bundle:
    """Export a bundle to `out` and prove that its vectors are PyTorch's.

    Nothing is left at `out` when this fails. Raises CheckpointError: the checkpoint cannot be exported as it is.
    BundleError: `out` exists, the disk is full, or the vectors are not PyTorch's.
    """
    target = _target(request.target)
    require_free(out, force=force)  # before a download
    with open_checkpoint(request) as (folder, source):
        config, recipe = _read(request, folder)
        model_file = MODELS[config.required["model_type"]]
        shapes = model_file.weight_shapes(config)
        Weights.open(folder, prefix=model_file.PREFIX).check(
            shapes, harmless=model_file.HARMLESS_WEIGHTS, model_type=config.required["model_type"]
        )
        size_bytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
        with atomic_folder(out, size_bytes=size_bytes, force=force) as partial:
            checkpoint_tokenizer.require_tokens(folder, config.vocab_size)
            expected = check.expect(folder, recipe)
            _write_graph(partial, folder, config, recipe, target, progress=progress)
            bundle = bundle_writer.write_manifest(_describe(request, partial, config, recipe, source, folder))
            parity = check.compare(Embedder.open(partial), expected, limit=target.limit)
            _require(parity, out)
            bundle_writer.write_manifest(dataclasses.replace(bundle, parity=parity))
    return Bundle.open(out)


def _write_graph(out: Path, checkpoint: Path, config: Any, recipe: Recipe, target: Target, *, progress: bool) -> None:
    """Build, lower and save the graph. The weights' files are closed again afterwards: mapped pages count as memory."""
    model_file = MODELS[config.required["model_type"]]
    weights = Weights.open(checkpoint, prefix=model_file.PREFIX)
    model = model_file.build(
        config, weights, pooling=recipe.pooling, normalize=recipe.normalize, token_states=target.token_states
    )
    lower(model, target.swaps)
    for value in model.graph.outputs:
        value.name = target.outputs.get(str(value.name), value.name)
    bundle_writer.write_graph(out, model, target, progress=progress)


def check_bundle(folder: Path, checkpoint: Path | None) -> Parity:
    """Compare a bundle with PyTorch again.

    checkpoint  folder of its weights; None takes them from the Hub, or makes them again if they were random
    Raises BundleError, CheckpointError.
    """
    embedder = Embedder.open(folder, verify=True)
    bundle = embedder.bundle
    if bundle.source.kind == "folder" and checkpoint is None:
        raise CheckpointError(
            f"{folder}: expected --checkpoint, the folder it was exported from; a bundle holds no PyTorch weights."
        )
    request = Request(
        model=bundle.model,
        target=bundle.target,
        checkpoint=checkpoint,
        revision=bundle.source.revision,
        seed=bundle.source.seed if checkpoint is None else None,
    )
    with open_checkpoint(request) as (weights_folder, source):
        if source.sha256 != bundle.source.sha256:
            raise CheckpointError(
                f"{weights_folder}: expected the weights that {bundle.name} was made from "
                f"(sha256 {bundle.source.sha256}), found others ({source.sha256}).\n"
                "    Give their folder, or export these."
            )
        expected = check.expect(weights_folder, recipe_of(bundle))
        return check.compare(embedder, expected, limit=_target(bundle.target).limit)


def recipe_of(bundle: Bundle) -> Recipe:
    """The recipe that a bundle was exported with."""
    return Recipe(
        pooling=bundle.pooling,  # type: ignore[arg-type]  # a manifest's text; the oracle refuses others
        normalize=bundle.normalized,
        max_tokens=bundle.max_tokens,
        prompts=dict(bundle.prompts),
        lower_cased=bundle.lower_cased,
    )


@contextmanager
def open_checkpoint(request: Request) -> Iterator[tuple[Path, Source]]:
    """The folder of the weights and where they came from; random ones are removed afterwards."""
    entry = catalog.find(request.model)
    if request.checkpoint is not None:
        folder = request.checkpoint
        weights = Weights.open(folder, prefix="")
        yield folder, Source(kind="folder", sha256=weights.sha256())
    elif request.seed is not None:
        if entry is None:
            known = ", ".join(known.short_name for known in catalog.ENTRIES)
            raise CheckpointError(f"{request.model}: expected a known model for --random-weights, one of {known}.")
        with tempfile.TemporaryDirectory(prefix="bge-export-") as temporary:
            folder = Path(temporary)
            random_checkpoint.write(folder, entry.config, seed=request.seed, lower_case=entry.lower_case)
            yield folder, Source(kind="random", seed=request.seed)
    else:
        if entry is None and "/" not in request.model:
            raise CheckpointError(
                f"{request.model}: expected a known model (see `bge-export list`) or a Hub name OWNER/NAME, found "
                "neither.\n"
                "    For weights in a folder add --checkpoint DIR; MODEL is then just the bundle's name."
            )
        revision = request.revision or (entry.revision if entry else None)
        folder, commit = hub.download(entry.repository if entry else request.model, revision)
        yield folder, Source(kind="hub", revision=commit, sha256=Weights.open(folder, prefix="").sha256())


def _target(name: str) -> Target:
    if name not in TARGETS:
        raise BundleError(f"target: expected one of {', '.join(TARGETS)}, found {name}.")
    return TARGETS[name]


def _read(request: Request, folder: Path) -> tuple[Any, Recipe]:
    path = folder / "config.json"
    record = read_json(path)
    model_type = record.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise CheckpointError(
            f"{path}: expected a model_type out of {', '.join(MODELS)}, found {model_type!r}.\n"
            "    This architecture is not supported."
        )
    config = parse_config(MODELS[model_type].Config, record, path)
    return config, read_recipe(folder, catalog.find(request.model), record, request.options)


def _describe(request: Request, partial: Path, config: Any, recipe: Recipe, source: Source, checkpoint: Path) -> Bundle:
    """The bundle's manifest, parity still open; writes tokenizer and, for `portable`, the files others read."""
    target, entry = TARGETS[request.target], catalog.find(request.model)
    tokenizer = checkpoint_tokenizer.load(checkpoint)
    if request.target == "portable":
        bundle_writer.write_portable_files(partial, checkpoint, tokenizer, recipe, config.hidden_size)
    special_ids = bundle_writer.write_tokenizer(partial, tokenizer, recipe)
    return Bundle(
        folder=partial,
        format_version=FORMAT_VERSION,
        name=f"{request.model.rsplit('/', 1)[-1]}-{request.target}",
        model=entry.repository if entry else request.model,
        model_type=config.required["model_type"],
        licence=entry.licence if entry else None,
        source=source,
        target=request.target,
        provider=target.provider,
        layout=target.layout,
        graph=target.graph,
        tokenizer=bundle_writer.TOKENIZER,
        outputs=target.outputs,
        dims={"dense": config.hidden_size},
        pooling=recipe.pooling,
        normalized=recipe.normalize,
        max_tokens=recipe.max_tokens,
        lower_cased=recipe.lower_cased,
        prompts=recipe.prompts,
        special_ids=special_ids,
        kernels=(),
        versions=bundle_writer.versions(),
        files={},
        parity=None,
    )


def _require(parity: Parity, out: Path) -> None:
    if not parity.passed:
        head = parity.heads["dense"]
        raise BundleError(
            f"{out}: expected vectors within {head.limit:.0e} of PyTorch's, found {head.max_error:.1e} at a text of "
            f"{head.tokens} tokens, and {parity.tokenizer_mismatches} texts with other token ids.\n"
            "    Nothing was written. This is a fault of the exporter: please report it with the model's name."
        )
