"""Few-shot queries: their text, what is computed once, FlagEmbedding's classes for decoders, the command."""

from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
from click.testing import CliRunner

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx import Embedder, InputError
from bge_onnx.cli.main import cli
from bge_onnx.flag import FlagAutoModel, FlagICLModel, FlagLLMModel
from bge_onnx.run.session import Session
from bge_onnx.text.examples import Prompt, examples_text

TASK = "Given a question, retrieve its answer."
EXAMPLES = [
    {"instruct": "Given a claim, find evidence.", "query": "tea is a drink", "response": "Tea is made of leaves."},
    {"query": "what is BM25?", "response": "A ranking function."},
]
CONFIG = {
    "model_type": "mistral",
    "vocab_size": 32003,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "sliding_window": 4096,
    "hidden_act": "silu",
}


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory):
    """A tiny decoder with Mistral's own tokenizer."""
    folder = tmp_path_factory.mktemp("icl")
    model = data / "tokenizer-mistral-7b-v0.1/tokenizer.model"
    random_checkpoint.write(folder, CONFIG, seed=0, lower_case=False, sentencepiece_model=model)
    out = tmp_path_factory.mktemp("bundle") / "icl"
    export(Request(model="tiny-icl", target="cpu-fp32", checkpoint=folder, options=Options(pooling="last")), out)
    return out


@pytest.fixture(scope="module")
def bge(bundle):
    return Embedder.open(bundle, threads=2)


def test_published_token_ids(bge):
    """BAAI's tutorial prints these ids for bge-en-icl."""
    found = bge.tokenizer.encode(["embedding", "I love machine learning and nlp"])
    assert [ids.tolist() for ids in found] == [
        [1, 28643, 2],
        [1, 315, 2016, 5599, 5168, 304, 307, 12312, 2],
    ]


def test_examples_are_rendered_as_flagembedding_does():
    """A missing instruction is the query's, a missing query or response is empty; blank lines stand between."""
    found = examples_text([*EXAMPLES, {"query": "q"}], TASK)
    assert found == (
        "<instruct>Given a claim, find evidence.\n<query>tea is a drink\n<response>Tea is made of leaves.\n\n"
        f"<instruct>{TASK}\n<query>what is BM25?\n<response>A ranking function.\n\n"
        f"<instruct>{TASK}\n<query>q\n<response>\n\n"
    )
    assert examples_text([], TASK) == "\n\n"  # FlagEmbedding's, of an empty list


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (["text"], r"examples\[0\]: expected a mapping with instruct, query and response, found 'text'"),
        ([{"instruct": "x"}, {"query": "q"}], r"examples\[1\]: expected a string as instruct, found None"),
        ([{"instruct": "x", "query": 7}], r"examples\[0\]: expected a string as query, found 7"),
    ],
)
def test_examples_that_are_none(examples, message):
    """Things that are no examples are named with what they are; FlagEmbedding would embed the word None."""
    with pytest.raises(InputError, match=message):
        examples_text(examples, None)


def test_the_query_is_decoded_and_tokenised_again(bge):
    """A Llama tokenizer decodes "<query>what" to "<query> what": the whole text has an extra space piece there."""
    (found,) = Prompt(instruction="Given").token_ids(bge.tokenizer, ["what is"], max_tokens=64)
    text = "<instruct> Given\n<query> what is\n<response>"
    assert found.tolist() == bge.tokenizer.encode([text])[0].tolist()
    assert found.tolist() != bge.tokenizer.encode(["<instruct>Given\n<query>what is\n<response>"])[0].tolist()


def test_only_the_query_is_cut(bge):
    """`max_tokens` cuts the query; examples, response mark and end token stay."""
    prompt = Prompt(examples=examples_text(EXAMPLES, TASK), instruction=TASK)
    long, longer = prompt.token_ids(bge.tokenizer, ["word " * 100, "word " * 200], max_tokens=48)
    assert long.tolist() == longer.tolist()
    assert long[-2:].tolist() == [32002, 2]
    assert len(long) > 48


def test_few_shot_vectors_are_those_of_the_whole_text(bge):
    """Task and examples are computed once, and the vectors are those of the whole texts."""
    few_shot = bge.with_examples(EXAMPLES, instruction=TASK)
    queries = ["what is tea?", "", "who wrote it, and when?", "x " * 300]
    whole = few_shot.prompt.token_ids(bge.tokenizer, queries, max_tokens=512)
    np.testing.assert_allclose(few_shot.embed(queries).dense, bge.embed_token_ids(whole).dense, atol=2e-6)
    assert [part.dense.shape[0] for part in few_shot.stream(iter(queries), window=3)] == [3, 1]
    assert [part.dense.shape for part in few_shot.stream([])] == [(0, 32)]
    with pytest.raises(InputError, match="expected a list of strings, found one string"):
        next(few_shot.stream("what is tea?"))


def test_queries_compute_their_own_tokens_only(bge, monkeypatch):
    """Every query shares all of the task and the examples, the first query too."""
    few_shot = bge.with_examples(EXAMPLES, instruction=TASK)
    seen = []
    run_one = Session._run_one

    def spy(self, session, batch, names, past):
        seen.append(batch.input_ids.shape[1])
        return run_one(self, session, batch, names, past)

    monkeypatch.setattr(Session, "_run_one", spy)
    few_shot.embed(["what is tea?"])
    assert seen[0] < 12
    assert len(few_shot.prefix.token_ids) > 60


@pytest.mark.parametrize(
    ("examples", "max_tokens", "message"),
    [
        ([], 4, "expected at least .* room for a query, found 4"),
        (EXAMPLES * 30, 512, r"expected at most 1024 tokens \(this model's limit\) with their examples"),
    ],
)
def test_queries_without_room(bge, examples, max_tokens, message):
    """No room for a query, or examples beyond the model's limit, is an error that says how much there is."""
    with pytest.raises(InputError, match=message):
        bge.with_examples(examples, instruction=TASK).embed(["q"], max_tokens=max_tokens)


def test_flag_icl_model(bundle, bge):
    """FlagICLModel gives `with_examples`' vectors, follows set_examples and assignments; passages stay bare."""
    model = FlagICLModel(str(bundle), query_instruction_for_retrieval=TASK, examples_for_task=EXAMPLES)
    wanted = bge.with_examples(EXAMPLES, instruction=TASK).embed(["what is tea?"]).dense
    np.testing.assert_array_equal(model.encode_queries(["what is tea?"]), wanted)
    assert model.encode_queries("what is tea?").shape == (32,)
    model.set_examples(EXAMPLES[:1])
    fewer = bge.with_examples(EXAMPLES[:1], instruction=TASK).embed(["what is tea?"]).dense
    np.testing.assert_array_equal(model.encode_queries(["what is tea?"]), fewer)
    model.set_examples()
    np.testing.assert_array_equal(model.encode_queries(["what is tea?"]), wanted)
    np.testing.assert_array_equal(model.encode_corpus(["Tea."]), bge.embed(["Tea."]).dense)
    pool = model.start_multi_process_pool(model._encode_queries_multi_process_worker)
    np.testing.assert_array_equal(model.encode_multi_process(["what is tea?"], pool), wanted)
    np.testing.assert_array_equal(model.encode_queries_single_device("what is tea?", device="cpu"), wanted[0])
    model.stop_self_query_pool()


def test_flag_llm_model(bundle, bge):
    """FlagLLMModel has FlagEmbedding's own template; FlagAutoModel asks for that of a model it does not know."""
    model = FlagLLMModel(str(bundle), query_instruction_for_retrieval=TASK)
    wanted = bge.embed([f"Instruct: {TASK}\nQuery: tea?"]).dense
    np.testing.assert_array_equal(model.encode_queries(["tea?"]), wanted)
    auto = FlagAutoModel.from_finetuned(str(bundle), query_instruction_format="{}: {}")
    assert isinstance(auto, FlagLLMModel)
    with pytest.raises(InputError, match="expected the template of tiny-icl's queries"):
        FlagAutoModel.from_finetuned(str(bundle))
    with pytest.raises(ValueError, match="pooling_method: expected 'last_token'"):
        FlagLLMModel(str(bundle), pooling_method="cls")


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_the_command_embeds_few_shot_queries(bundle, bge, tmp_path, ending):
    """`bge embed --examples FILE --instruction TEXT` prints the few-shot vectors."""
    lines = [json.dumps(example) for example in EXAMPLES]
    path = tmp_path / f"examples.{ending}"
    path.write_text("\n".join(lines) if ending == "jsonl" else json.dumps(EXAMPLES))
    command = ["embed", str(bundle), "--instruction", TASK, "--examples", str(path)]
    result = CliRunner().invoke(cli, command, input="what is tea?\nwho?\n", catch_exceptions=False)
    found = [json.loads(line)["dense"] for line in result.stdout.splitlines()]
    wanted = bge.with_examples(EXAMPLES, instruction=TASK).embed(["what is tea?", "who?"]).dense
    np.testing.assert_allclose(found, wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "found none"), ("{", "expected JSON, found"), ('{"query": 1}', "expected a JSON list")],
)
def test_a_file_that_holds_no_examples(bundle, tmp_path, content, message):
    """A missing file, no JSON, and JSON that is no list are told."""
    path = tmp_path / "examples.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(cli, ["embed", str(bundle), "--examples", str(path)], input="q\n", catch_exceptions=False)


def test_queries_without_a_task_have_their_response_mark(bge, bundle):
    """embed_queries and `bge embed --query` give FlagICLModel's queries without instruction, never the bare text."""
    wanted = FlagICLModel(str(bundle)).encode_queries(["what is tea?"])
    np.testing.assert_allclose(bge.embed_queries(["what is tea?"]).dense, wanted, atol=2e-6)
    result = CliRunner().invoke(cli, ["embed", str(bundle), "--query"], input="what is tea?\n", catch_exceptions=False)
    np.testing.assert_allclose([json.loads(result.stdout)["dense"]], wanted, atol=2e-6)


def test_a_task_without_examples_is_a_prompt(bge):
    """Models with tasks but without response mark, as bge-multilingual-gemma2, take the task in front."""
    assert bge.task_prompt("Find it.") == "<instruct>Find it.\n<query>"


def test_models_that_take_no_examples(tiny, tiny_bundle):
    """Examples and tasks are refused by models that were not trained with them."""
    with pytest.raises(InputError, match="expected a bundle of bge-en-icl or its kin"):
        tiny.with_examples(EXAMPLES)
    with pytest.raises(InputError, match="expected a bundle of a model with tasks"):
        tiny.task_prompt(TASK)
    with pytest.raises(InputError, match="pooling_method: expected 'cls'"):
        FlagICLModel(str(tiny_bundle))


def test_threads_with_other_examples_do_not_mix(bundle):
    """While one thread sets examples, another's call answers with one set of them and never with half of each."""
    model = FlagICLModel(str(bundle), query_instruction_for_retrieval=TASK, examples_for_task=EXAMPLES)
    sets = [EXAMPLES, EXAMPLES[:1]]
    wanted = []
    for examples in sets:
        model.set_examples(examples)
        wanted.append(model.encode_queries(["what is tea?"]).tobytes())
    stop = threading.Event()

    def change():
        for examples in itertools.cycle(sets):
            if stop.is_set():
                return
            model.set_examples(examples)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        found = {model.encode_queries(["what is tea?"]).tobytes() for _ in range(20)}
    finally:
        stop.set()
        thread.join()
    assert found <= set(wanted)
