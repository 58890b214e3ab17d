"""From a checkpoint to a bundle: read, build, lower, write, prove."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import onnx_ir as ir

from bge_export.bundle import writer
from bge_export.bundle.folder import atomic_folder, require_free
from bge_export.bundle.portable_files import write_portable_files
from bge_export.checkpoint import catalog, heads
from bge_export.checkpoint.config import parse_config, quoted, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.modules import Dense, weight_shapes, width_of
from bge_export.checkpoint.recipe import Recipe, read_recipe
from bge_export.checkpoint.tokenizer import load_tokenizer, require_tokens
from bge_export.checkpoint.weights import Weights
from bge_export.describe import describe, graph_outputs_of, types_of
from bge_export.graph.pooling import Pooling
from bge_export.lowering import half
from bge_export.lowering.int8 import calibrate
from bge_export.lowering.int8.operators import LINEAR, PASSES, Int8, Operators, best_operators
from bge_export.lowering.int8.rounding import GRIDS
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import Lowering, lower
from bge_export.lowering.targets import NAMES, TARGETS, Target
from bge_export.models.families import MODELS
from bge_export.proof import check
from bge_export.proof.compare import Expected, compare, compare_apart
from bge_export.request import Request, open_checkpoint
from bge_kernels import library, why_missing
from bge_onnx import Bundle, BundleError, CheckpointError, InputError
from bge_onnx.bundle.heads import FIRST, HEADS, SCORE
from bge_onnx.bundle.records import Parity
from bge_onnx.model import open_model


def export(request: Request, out: Path, *, force: bool = False, progress: bool = False) -> Bundle:
    """Export a bundle to `out` and prove that its vectors are PyTorch's.

    Nothing is left at `out` when this fails. Raises CheckpointError: the checkpoint cannot be exported as it is.
    BundleError: `out` exists, the disk is full, or the vectors are not PyTorch's. ProviderError: they cannot be
    compared here, and `request.check` wants it.
    """
    _check_name(request.target)
    out = out.absolute()  # where it is now: `out` may be the working directory, which is replaced
    require_free(out, force=force)  # before a download
    with open_checkpoint(request) as (folder, source):
        config, recipe, target = _read(request, folder)
        request = dataclasses.replace(request, kernels=_operators(request, target))
        if request.check:
            check.require_provider(target)
        stored = 0.5 if request.weights == "fp16" else 1
        size_bytes = int(_check_weights(folder, config, recipe) * target.bytes_per_weight * stored)
        with atomic_folder(out, size_bytes=size_bytes, force=force) as partial:
            require_tokens(folder, config.vocab_size)
            lowering = lowering_of(request, folder, config, recipe, target, progress=progress)
            expected = check.expect(folder, recipe, lowering, progress=progress) if request.check else None
            model = _build(folder, config, recipe, target, lowering)
            dims = _write_graph(partial, model, config, recipe, target, progress=progress)
            del model  # with the weights' files, whose mapped pages count as memory
            special_ids = _write_tokenizer(partial, folder, recipe, target)
            described = describe(request, config, source, recipe)
            bundle = writer.write_manifest(
                dataclasses.replace(described, folder=partial, dims=dims, special_ids=special_ids)
            )
            if expected:
                limits = target.limits(config, GRIDS[request.activations])
                parity = compare_with(bundle, expected, limits, progress=progress)
                _require(parity, out)
                writer.rewrite_manifest(dataclasses.replace(bundle, parity=parity))
    return Bundle.open(out)


def lowering_of(
    request: Request, folder: Path, config: Any, recipe: Recipe, target: Target, *, progress: bool
) -> Lowering:
    """How the target lowers this model. Raises InputError: weights or a calibration that it has no use for."""
    if request.calibration and not target.on_bytes:
        raise InputError("calibration: expected the target cpu-int8 of a BERT or XLM-R model, found another.")
    if request.weights == "fp16":
        if not target.stores_fp16:
            raise InputError("weights: expected fp32 for all but the target cpu-fp32 of a BERT or XLM-R, found fp16.")
        return Lowering(target.lowering(config, None).swaps, half.rounded, finish=half.store)
    if not target.on_bytes:
        return target.lowering(config, None)
    assert request.kernels != "auto"  # `export` has resolved it
    texts = request.calibration or calibrate.RANDOM_IDS
    hessians = calibrate.hessians(folder, recipe, texts, progress=progress)
    operators = request.kernels or frozenset()
    return target.lowering(config, Int8(hessians=hessians, operators=operators, grid=GRIDS[request.activations]))


def _operators(request: Request, target: Target) -> Operators | None:
    """The operators that are asked for; the best at hand for "auto".

    Raises InputError: the target has no operators, the installation has none, a name is unknown, or seven bits are
    asked for without the operator that can use them.
    """
    if request.kernels == "auto":
        found = best_operators() if target.on_bytes else None
    elif request.kernels and not target.on_bytes:
        raise InputError("kernels: expected none for all but the target cpu-int8 of a BERT or XLM-R, found some.")
    elif request.kernels and request.check and not library():
        raise InputError(f"kernels: expected an installation with operators, found none: {why_missing()}.")
    else:
        found = request.kernels
    if unknown := sorted((found or set()) - PASSES - LINEAR):
        known = ", ".join(sorted(PASSES | LINEAR))
        raise InputError(f"kernels: expected names of operators, {known}, found {', '.join(unknown)}.")
    if request.activations == 7 and "Int8Linear" not in (found or ()):
        raise InputError(
            "activations: expected 8 bits without the operator Int8Linear, found 7.\n"
            "    It is in cpu-int8 bundles of BERT and XLM-R, unless --kernels none or the installation leaves it out."
        )
    return found


def compare_with(bundle: Bundle, expected: Expected, limits: Limits, *, progress: bool) -> Parity:
    """A bundle's parity, in a process of its own where its weights may not fit beside PyTorch's."""
    if bundle.causal:
        return compare_apart(bundle.folder, expected, limits, progress=progress)
    return compare(open_model(bundle.folder), expected, limits, progress=progress)


def _build(checkpoint: Path, config: Any, recipe: Recipe, target: Target, lowering: Lowering) -> ir.Model:
    """The graph of a checkpoint, lowered; its weights are read when it is written."""
    family = MODELS[config.required["model_type"]]
    weights = _weights(checkpoint, family.prefix, recipe)
    model: ir.Model = family.build(config, weights, graph_outputs_of(recipe, target, types_of(config)))
    lower(model, lowering.swaps)
    if lowering.finish:
        lowering.finish(model)
    return model


def _weights(checkpoint: Path, prefix: str, recipe: Recipe) -> Weights:
    modules = [step.path for step in recipe.steps if isinstance(step, Dense) and step.file]
    return Weights.open(checkpoint, prefix=prefix, heads=heads.files(recipe.heads), modules=modules)


def _write_graph(
    out: Path, model: ir.Model, config: Any, recipe: Recipe, target: Target, *, progress: bool
) -> dict[str, int]:
    """Save the graph with its weights; returns the width of each head."""
    widths = {str(value.name): value.shape[-1] for value in model.graph.outputs if value.shape}
    dims = {
        head: config.vocab_size if HEADS[head].gives == "weights" else int(str(widths[head])) for head in recipe.heads
    }
    for value in model.graph.outputs:
        value.name = target.outputs.get(str(value.name), value.name)
    writer.write_graph(out, model, target, progress=progress)
    return dims


def _write_tokenizer(out: Path, checkpoint: Path, recipe: Recipe, target: Target) -> dict[str, int]:
    """Write the tokenizer and, for a plain target, the files that other libraries read; returns special ids."""
    tokenizer = load_tokenizer(checkpoint)
    if target.plain:
        writer.write_whole_tokenizer(out, tokenizer, recipe)
        write_portable_files(out, checkpoint, recipe)
    return writer.write_tokenizer(out, tokenizer, recipe)


def _check_weights(checkpoint: Path, config: Any, recipe: Recipe) -> int:
    """How many numbers all weights that count have. Raises CheckpointError: some are missing, misshapen or unknown."""
    model_type = config.required["model_type"]
    family = MODELS[model_type]
    width_of(config.hidden_size, recipe.pooling, recipe.steps)
    weights = _weights(checkpoint, family.prefix, recipe)
    weights.require_layers(config.num_hidden_layers)
    shapes = family.weight_shapes(config) | heads.weight_shapes(recipe.heads, config.hidden_size, weights)
    shapes |= weight_shapes(recipe.steps)
    weights.check(shapes, harmless=family.harmless_weights, model_type=model_type)
    return sum(math.prod(shape) for shape in shapes.values())


def _check_name(target: str) -> None:
    if target not in NAMES:
        raise BundleError(f"target: expected one of {', '.join(NAMES)}, found {target}.")


def _read(request: Request, folder: Path) -> tuple[Any, Recipe, Target]:
    path = model_folder(folder) / "config.json"
    record = read_json(path)
    model_type = record.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise CheckpointError(
            f"{path}: expected a model_type out of {', '.join(MODELS)}, found {quoted(model_type)}.\n"
            "    This architecture is not supported."
        )
    config = parse_config(MODELS[model_type].Config, record, path)
    limit = MODELS[model_type].position_limit(config)
    recipe = read_recipe(folder, catalog.find(request.model), limit, request.options)
    targets = TARGETS[model_type]
    if request.target not in targets:
        raise CheckpointError(
            f"target: expected one for {model_type} models, {', '.join(targets)}, found {request.target}."
        )
    if targets[request.target].layout == "packed" and recipe.pooling not in get_args(Pooling):
        raise CheckpointError(
            f"target: expected a CPU target, for pooling {recipe.pooling}, found {request.target}, which supports only "
            f"{', '.join(get_args(Pooling))}."
        )
    if MODELS[model_type].causal and recipe.steps and recipe.heads != (SCORE,):
        raise CheckpointError(
            f"{folder}: expected no module but Normalize behind the pooling of a {model_type} model, found "
            f"{len(recipe.steps)}.\n    Dense modules are exported of BERT and XLM-R."
        )
    if MODELS[model_type].causal and (recipe.pooling != "last" or recipe.heads not in ((FIRST,), (SCORE,))):
        raise CheckpointError(
            f"{folder}: expected pooling last and the head dense or score for a {model_type} model, found "
            f"{recipe.pooling} and {', '.join(recipe.heads)}.\n    Add --pooling last."
        )
    return config, recipe, targets[request.target]


def _require(parity: Parity, out: Path) -> None:
    if not parity.passed:
        name, head = max(parity.heads.items(), key=lambda item: item[1].max_error / item[1].limit)
        raise BundleError(
            f"{out}: expected vectors within {head.limit:.0e} of PyTorch's, found {head.max_error:.1e} ({name}) at a "
            f"text of {head.tokens} tokens, and {parity.tokenizer_mismatches} texts with other token ids.\n"
            "    Nothing was written. This is a fault of the exporter: please report it with the model's name."
        )
