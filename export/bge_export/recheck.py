"""Comparing a finished bundle with its checkpoint again: with the same weights and the same recipe."""

from __future__ import annotations

from pathlib import Path

from bge_export.bundle import writer
from bge_export.checkpoint.config import parse_config, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.identity import checkpoint_sha256
from bge_export.checkpoint.recipe import Recipe, modules_of
from bge_export.describe import THEN
from bge_export.export import compare_with, lowering_of
from bge_export.lowering.int8 import calibrate
from bge_export.lowering.int8.calibrate import Texts
from bge_export.lowering.int8.rounding import GRIDS
from bge_export.lowering.targets import TARGETS
from bge_export.models.families import MODELS
from bge_export.proof import check
from bge_export.request import Request, open_checkpoint
from bge_onnx import Bundle, CheckpointError
from bge_onnx.bundle.records import Parity
from bge_onnx.run.kernels import libraries


def check_bundle(
    folder: Path,
    checkpoint: Path | None,
    head_files: Path | None = None,
    tokenizer: Path | None = None,
    calibration: Texts | None = None,
    *,
    progress: bool = False,
) -> Parity:
    """Compare a bundle with PyTorch again. If it passes for the first time, its manifest records that.

    checkpoint  folder of its weights; None takes them from the Hub, or makes them again if they were random
    head_files  folder of its heads' weights, where the others are random
    tokenizer   its SentencePiece model, where the weights are random
    calibration  the texts that it was calibrated with
    Raises BundleError: no bundle, or another one took its place meanwhile. CheckpointError.
    """
    bundle = Bundle.open(folder, verify=True)
    if bundle.source.kind == "folder" and checkpoint is None:
        raise CheckpointError(
            f"{folder}: expected --checkpoint, the folder it was exported from; a bundle holds no PyTorch weights."
        )
    target = TARGETS[bundle.model_type][bundle.target]
    check.require_provider(target)
    libraries(bundle)
    request = Request(
        model=bundle.model,
        target=bundle.target,
        checkpoint=checkpoint,
        revision=bundle.source.revision,
        seed=bundle.source.seed if checkpoint is None else None,
        head_files=head_files,
        tokenizer=tokenizer,
        weights="fp32" if bundle.weights == target.stores else bundle.weights,
        calibration=_same_calibration(bundle, calibration),
        kernels=None,
        activations=bundle.activations or 8,
    )
    with open_checkpoint(request) as (weights_folder, source):
        _require_same(bundle, weights_folder, source.sha256)
        family = MODELS[bundle.model_type]
        path = model_folder(weights_folder) / "config.json"
        config = parse_config(family.Config, read_json(path), path)
        recipe = recipe_of(bundle, weights_folder)
        lowering = lowering_of(request, weights_folder, config, recipe, target, progress=progress)
        expected = check.expect(weights_folder, recipe, lowering, progress=progress)
        parity = compare_with(bundle, expected, target.limits(config, GRIDS[request.activations]), progress=progress)
    if bundle.parity is None and parity.passed:
        writer.record(bundle, parity=parity)
    return parity


def require_same_weights(bundle: Bundle, checkpoint: Path, sha256: str | None = None) -> None:
    """Raise CheckpointError: a bundle was not made from the weights in `checkpoint`, whose hash is `sha256`."""
    if bundle.source.kind != "random":
        _require_same(bundle, checkpoint, sha256 or checkpoint_sha256(checkpoint))


def _require_same(bundle: Bundle, folder: Path, sha256: str | None) -> None:
    if sha256 != bundle.source.sha256:
        random = bundle.source.kind == "random" and sha256 is None
        raise CheckpointError(
            f"{folder}: expected the weights that {bundle.name} was made from (sha256 {bundle.source.sha256}), found "
            f"others ({sha256}).\n"
            f"    {'Give its heads with --head-files DIR' if random else 'Give their folder, or export these'}."
        )


def _same_calibration(bundle: Bundle, given: Texts | None) -> Texts | None:
    """What a bundle was calibrated with. Raises CheckpointError: another file, or none, is given."""
    for known in (calibrate.RANDOM_IDS, calibrate.NOTHING):
        if bundle.calibration == known.described:
            return known
    found = given.described if given else None
    if found != bundle.calibration:
        raise CheckpointError(
            f"{bundle.folder}: expected the calibration that it was exported with ({bundle.calibration or 'none'}), "
            f"found {found or 'none'}.\n    Give the same file with --calibrate FILE."
        )
    return given


def recipe_of(bundle: Bundle, checkpoint: Path | None = None) -> Recipe:
    """The recipe that a bundle was exported with.

    checkpoint  the folder of its weights; needed if there are modules between pooling and normalisation
    """
    pooling, *steps = bundle.pooling.split(THEN)
    assert not steps or checkpoint
    return Recipe(
        pooling=pooling,
        steps=modules_of(checkpoint, tuple(bundle.outputs)).steps if steps and checkpoint else (),
        normalize=bundle.normalized,
        max_tokens=bundle.max_tokens,
        prompts=dict(bundle.prompts),
        lower_cased=bundle.lower_cased,
        heads=tuple(bundle.outputs),
        truncate_dim=bundle.truncate_dim,
        similarity=bundle.similarity,
    )
