"""Values that others published for the decoders, where their checkpoints are given: folders bge-en-icl and
bge-multilingual-gemma2 under BGE_CHECKPOINTS, and memory for seven or nine billion float32 weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx.flag import FlagICLModel, FlagLLMModel
from bge_onnx.text.examples import EXAMPLE_FORMAT, QUERY_FORMAT
from bge_onnx.text.tokenizer import Tokenizer


def checkpoint(name):
    """The folder of a checkpoint; skips where there is none."""
    folder = Path(os.environ.get("BGE_CHECKPOINTS", "")) / name
    if "BGE_CHECKPOINTS" not in os.environ or not folder.is_dir():
        pytest.skip(f"needs BAAI/{name} in a folder {name} under BGE_CHECKPOINTS")
    return folder


def recorded(data, name):
    return json.loads((data / f"tokenization-golden/{name}.json").read_text(encoding="utf-8"))["cases"]


def without_end(tokenizer, texts):
    """Token ids as recorded: the begin token, no end token."""
    return [ids[:-1].tolist() for ids in tokenizer.encode(texts)]


def test_recorded_ids_of_mistral(data, tmp_path):
    """The ids that Mistral's own library records, from the tokenizer that random checkpoints of bge-en-icl get."""
    model = data / "tokenizer-mistral-7b-v0.1/tokenizer.model"
    random_checkpoint.write_llama_tokenizer(tmp_path, model, ("<instruct>", "<query>", "<response>"))
    cases = recorded(data, "mistral")
    found = without_end(Tokenizer.open(tmp_path / "tokenizer.json", max_tokens=512), [case["text"] for case in cases])
    assert found == [case["ids"] for case in cases]


def test_recorded_ids_of_gemma(data):
    """The ids that transformers' tests record for Gemma."""
    cases = recorded(data, "gemma")
    path = checkpoint("bge-multilingual-gemma2") / "tokenizer.json"
    found = without_end(Tokenizer.open(path, max_tokens=8192), [case["text"] for case in cases])
    assert found == [case["ids"] for case in cases]


@pytest.fixture(scope="module")
def bundle(request, tmp_path_factory):
    """The model that the test's parameter names, exported for cpu-fp32."""
    folder = checkpoint(request.param)
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    export(Request(model=f"BAAI/{request.param}", target="cpu-fp32", checkpoint=folder), out)
    return str(out)


@pytest.fixture(scope="module")
def published(data):
    """The published examples by id."""
    path = data.parent / "reference/published_examples.json"
    return {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def similarity_error(model, example):
    """The largest difference from the published similarities of queries and passages."""
    inputs, expected = example["inputs"], example["expected"]
    found = model.encode_queries(inputs["queries"]) @ model.encode_corpus(inputs["passages"]).T
    scores = expected["similarity"] if "similarity" in expected else np.array(expected["scores_x100"]) / 100
    return float(np.abs(found - scores).max())


@pytest.mark.checkpoint
@pytest.mark.parametrize("bundle", ["bge-multilingual-gemma2"], indirect=True)
@pytest.mark.parametrize(
    ("name", "template", "limit"),
    [
        ("gemma2-card-hf-fp32", QUERY_FORMAT, 1e-4),
        ("gemma2-card-flagllm-fp16", QUERY_FORMAT, 2e-3),
        ("gemma2-examples-fp16", QUERY_FORMAT, 2e-3),
        ("gemma2-tutorial-fp16", "Instruct: {}\nQuery: {}", 2e-3),
    ],
)
def test_gemma2_similarities(bundle, published, name, template, limit):
    """Queries with a task against passages, as the model card and the tutorial print them."""
    model = FlagLLMModel(
        bundle,
        query_instruction_for_retrieval=published[name]["inputs"]["instruction"],
        query_instruction_format=template,
    )
    assert similarity_error(model, published[name]) <= limit


@pytest.mark.checkpoint
@pytest.mark.parametrize("bundle", ["bge-en-icl"], indirect=True)
@pytest.mark.parametrize("name", ["icl-tutorial-fewshot-fp16", "icl-examples-fewshot-fp16"])
def test_few_shot_similarities(bundle, published, name):
    """Queries behind few-shot examples, with a task and without, as the tutorial and the examples print them."""
    inputs = published[name]["inputs"]
    model = FlagICLModel(
        bundle,
        query_instruction_for_retrieval=inputs.get("instruction"),
        query_instruction_format=QUERY_FORMAT,
        examples_for_task=inputs["examples"],
        examples_instruction_format=EXAMPLE_FORMAT,
    )
    assert similarity_error(model, published[name]) <= 2e-3
