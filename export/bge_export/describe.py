"""What a bundle will be: the outputs of its graph, and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_export.bundle import writer
from bge_export.checkpoint import catalog
from bge_export.checkpoint.recipe import Recipe
from bge_export.lowering.int8 import calibrate
from bge_export.lowering.targets import TARGETS, Target
from bge_export.models.families import MODELS
from bge_export.models.graph_outputs import GraphOutputs
from bge_export.request import Request
from bge_kernels import NAME
from bge_onnx import Bundle
from bge_onnx.bundle.heads import HEADS, SCORE, of_pooled
from bge_onnx.bundle.records import FORMAT_VERSION, Source

MCLS_ABOVE_TOKENS = 512
THEN = " then "
"""Between pooling and what follows it, in a manifest."""


def graph_outputs_of(recipe: Recipe, target: Target, types: int) -> GraphOutputs:
    """What the graph gives. Token states serve MCLS, which texts of up to 512 tokens have no use for.

    types  of tokens that the model knows: 2 where it tells a pair's texts apart
    """
    mcls = recipe.max_tokens > MCLS_ABOVE_TOKENS and recipe.pooling == "cls" and not recipe.steps
    more = recipe.heads != (of_pooled(recipe.heads),) or mcls
    return GraphOutputs(
        pooling=recipe.pooling,
        normalize=recipe.normalize,
        steps=recipe.steps,
        heads=recipe.heads,
        raw=not target.plain,
        token_states=target.plain or more,
        prune=not target.plain,
        packed=target.layout == "packed",
        types=recipe.heads == (SCORE,) and types > 1,
        whole=target.layout == "whole",
    )


def types_of(config: Any) -> int:
    """How many types of tokens a model knows."""
    return getattr(config, "type_vocab_size", 1)


def describe(request: Request, config: Any, source: Source, recipe: Recipe) -> Bundle:
    """The bundle's manifest without what is known only when it is written."""
    model_type = config.required["model_type"]
    target, entry = TARGETS[model_type][request.target], catalog.find(request.model)
    wanted = graph_outputs_of(recipe, target, types_of(config))
    twice = wanted.raw and recipe.normalize
    return Bundle(
        folder=Path(),
        format_version=FORMAT_VERSION,
        name=_name(request),
        model=entry.repository if entry else request.model,
        model_type=model_type,
        licence=entry.licence if entry else None,
        source=source,
        target=request.target,
        provider=target.provider,
        layout=target.layout,
        graph=target.graph,
        tokenizer=writer.TOKENIZER,
        outputs={head: target.outputs.get(head, head) for head in recipe.heads},
        raw_outputs={head: f"{head}_raw" for head in recipe.heads if twice and HEADS[head].is_vectors},
        token_states=target.outputs.get("token_states", "token_states") if wanted.token_states else None,
        dims={},
        causal=MODELS[model_type].causal,
        pooling=THEN.join([recipe.pooling, *(type(step).__name__ for step in recipe.steps)]),
        normalized=recipe.normalize,
        max_tokens=recipe.max_tokens,
        lower_cased=recipe.lower_cased,
        prompts=recipe.prompts,
        special_ids={},
        kernels=(NAME,) if request.kernels else (),
        activations=request.activations if target.on_bytes else None,
        weights=target.stores if request.weights == "fp32" else request.weights,
        calibration=(request.calibration or calibrate.RANDOM_IDS).described if target.on_bytes else None,
        versions=writer.versions(),
        files={},
        parity=None,
        quality={},
        similarity=recipe.similarity,
        truncate_dim=recipe.truncate_dim,
    )


def _name(request: Request) -> str:
    """As `bge-base-en-v1.5-cpu-int8`, with what is special about its weights behind."""
    texts = request.calibration and request.calibration.texts
    special = ["fp16"] * (request.weights == "fp16") + ["calibrated"] * bool(texts)
    special += ["activations7"] * (request.activations == 7)
    return "-".join([request.model.rsplit("/", 1)[-1], request.target, *special])
