"""How a checkpoint's texts become vectors: sentence-transformers' files in both spellings, the catalog, the options."""

from __future__ import annotations

import json
import shutil

import pytest

from bge_export.checkpoint import catalog
from bge_export.checkpoint.files import SENTENCE_FILES
from bge_export.checkpoint.recipe import Options, Recipe, read_recipe
from bge_export.export import export
from bge_export.request import Request
from bge_onnx import CheckpointError, Embedder
from tiny import edit_json, write_checkpoint, write_json, write_modules

POOLING = "1_Pooling/config.json"
FLAGS = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
}
LONG_NAMES = (
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
)
SMALL_EN, SMALL_ZH = catalog.find("bge-small-en-v1.5"), catalog.find("bge-small-zh-v1.5")


def recipe(folder, *, entry=None, positions=512, **options):
    return read_recipe(folder, entry, positions, Options(**options))


def refusal(folder, *, entry=None, positions=512, **options):
    """The text of the CheckpointError that reading the recipe ends with."""
    with pytest.raises(CheckpointError) as caught:
        recipe(folder, entry=entry, positions=positions, **options)
    return str(caught.value)


@pytest.fixture
def zh(data, tmp_path):
    """The published files of bge-small-zh-v1.5, in sentence-transformers' old spelling, free to be changed."""
    return shutil.copytree(data / "tokenizer-bge-small-zh-v1.5", tmp_path / "zh", copy_function=shutil.copyfile)


@pytest.fixture
def tiny_folder(tiny_checkpoint, tmp_path):
    """The tiny checkpoint, free to be changed."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "tiny")


def test_the_published_files_in_the_old_spelling(zh):
    """The files of bge-small-zh-v1.5 and its catalog entry give its published recipe; the tokenizer decides on case."""
    wanted = {"query": "为这个句子生成表示以用于检索相关文章：", "passage": ""}
    assert recipe(zh, entry=SMALL_ZH) == Recipe(
        pooling="cls", normalize=True, max_tokens=512, prompts=wanted, lower_cased=False
    )


def test_the_published_files_in_the_new_spelling(data):
    """The files of bge-m3, as sentence-transformers 5 writes them, give its published recipe."""
    assert recipe(data / "bge-configs/bge-m3", positions=8194) == Recipe(
        pooling="cls", normalize=True, max_tokens=8192, prompts={"query": "", "passage": ""}, lower_cased=False
    )


def test_the_published_files_without_modules(data):
    """The files of bge-multilingual-gemma2, which lack modules.json, give last-token pooling, normalised."""
    found = recipe(data / "bge-configs/bge-multilingual-gemma2", positions=8192)
    assert (found.pooling, found.normalize, found.max_tokens) == ("last", True, 8192)


@pytest.mark.parametrize(
    ("record", "pooling"),
    [
        (FLAGS | {"pooling_mode_cls_token": True}, "cls"),
        (FLAGS | {"pooling_mode_mean_tokens": True}, "mean"),
        (FLAGS | {"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"word_embedding_dimension": 32, "pooling_mode_cls_token": True}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_both_spellings_of_pooling(tmp_path, record, pooling):
    """A flag per mode (sentence-transformers up to 4) and one `pooling_mode` (from 5 on) say the same."""
    write_json(tmp_path / POOLING, record)
    assert recipe(tmp_path).pooling == pooling


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"pooling_mode": "median"},
            "out of cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken, found",
        ),
        ({"pooling_mode": ["cls", "median"]}, "found 'cls + median'."),
        ({"pooling_mode": []}, "found none."),
        ({"pooling_mode": "cls", "include_prompt": False}, "found include_prompt False."),
        (FLAGS | {"pooling_mode_lasttoken": True, "include_prompt": False}, "found include_prompt False."),
    ],
)
def test_unsupported_pooling_is_refused(tmp_path, record, said):
    """A mode that there is not, none, or a prompt left out is an error that says which, in both spellings."""
    write_json(tmp_path / POOLING, record)
    text = refusal(tmp_path)
    assert text.startswith(f"{tmp_path / POOLING}: ")
    assert said in text


@pytest.mark.parametrize("record", [[], None, {"pooling_mode": None}, {"pooling_mode": 3}, {"pooling_mode": [None]}])
def test_a_damaged_pooling_file_is_named(tmp_path, record):
    """A 1_Pooling/config.json of another form is an error with its name, not a Python traceback."""
    write_json(tmp_path / POOLING, record)
    assert f"{tmp_path / POOLING}: expected " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("modules", "normalize"),
    [
        (("Transformer", "Pooling"), False),
        (("Transformer", "Pooling", "Normalize"), True),
        (LONG_NAMES[:2], False),
        (LONG_NAMES, True),
    ],
)
def test_modules_decide_on_normalisation(tmp_path, modules, normalize):
    """Vectors are normalised where modules.json lists Normalize, under its short or its new long type name."""
    write_modules(tmp_path, *modules)
    write_json(tmp_path / POOLING, {"pooling_mode": "mean"})
    assert recipe(tmp_path, entry=None).normalize is normalize


def test_without_modules_vectors_are_normalised(tmp_path):
    """A folder without modules.json gives vectors of length one, as all BGE models do."""
    assert recipe(tmp_path, pooling="cls").normalize is True


@pytest.mark.parametrize(
    "modules",
    [
        ("Transformer", "Pooling", "LSTM"),
        ("Transformer", "Pooling", "LayerNorm", "Normalize"),
        ("Transformer", "Normalize", "Pooling"),
        ("CLIPModel",),
        (*LONG_NAMES[:2], "sentence_transformers.sentence_transformer.modules.dropout.Dropout"),
    ],
)
def test_other_modules_are_refused(tmp_path, modules):
    """A module that we do not compute, or another order, is an error that lists what modules.json asks for."""
    write_modules(tmp_path, *modules)
    write_json(tmp_path / POOLING, {"pooling_mode": "cls"})
    kinds = ", ".join(module.rsplit(".", 1)[-1] for module in modules)
    text = refusal(tmp_path)
    assert f"{tmp_path / 'modules.json'}: expected the modules Transformer and Pooling, and then" in text
    assert f"found {kinds!r}.\n    Other modules change the vectors and are not supported." in text


@pytest.mark.parametrize("content", ["{}", "[]", "null", '[{"idx": 0}]', '["Transformer", "Pooling"]'])
def test_a_damaged_modules_file_is_named(tmp_path, content):
    """A modules.json of another form is an error with its name, not a Python traceback."""
    (tmp_path / "modules.json").write_text(content)
    assert f"{tmp_path / 'modules.json'}: expected " in refusal(tmp_path)


def test_the_pooling_file_is_the_one_that_modules_name(tmp_path):
    """The Pooling module's settings are those in the folder that modules.json names, never another folder's."""
    write_modules(tmp_path, "Transformer", "Pooling")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["path"] = "1_MeanPooling"
    write_json(tmp_path / "modules.json", modules)
    write_json(tmp_path / POOLING, {"pooling_mode": "cls"})
    write_json(tmp_path / "1_MeanPooling/config.json", {"pooling_mode": "mean"})
    assert recipe(tmp_path).pooling == "mean"


def test_nothing_says_the_pooling(tmp_path):
    """Without files and catalog the pooling is asked for; it is never guessed."""
    text = refusal(tmp_path)
    assert f"{tmp_path}: expected {POOLING}, which says how token states become a vector, found none." in text
    assert "Add --pooling cls (as all BGE models do), --pooling mean or --pooling last." in text


def test_modules_without_the_pooling_file(tmp_path):
    """A modules.json that lists Pooling without its file is answered the same way, and --pooling settles it."""
    write_modules(tmp_path, "Transformer", "Pooling")
    assert f"{tmp_path}: expected {POOLING}, which says how token states become a vector, found none." in refusal(
        tmp_path
    )
    assert recipe(tmp_path, pooling="mean") == recipe(tmp_path, pooling="mean", query_prompt="")
    assert recipe(tmp_path, pooling="mean").normalize is False


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_an_option_settles_the_pooling(tmp_path, pooling):
    """--pooling decides where no file does, and may repeat what a file says."""
    assert recipe(tmp_path, pooling=pooling).pooling == pooling
    write_json(tmp_path / POOLING, {"pooling_mode": {"last": "lasttoken"}.get(pooling, pooling)})
    assert recipe(tmp_path, pooling=pooling).pooling == pooling


def test_the_catalog_settles_the_pooling(tmp_path):
    """A known model needs no files: the catalog has its recipe."""
    found = recipe(tmp_path, entry=SMALL_EN)
    wanted = {"query": "Represent this sentence for searching relevant passages: ", "passage": ""}
    assert found == Recipe(pooling="cls", normalize=True, max_tokens=512, prompts=wanted, lower_cased=False)


@pytest.mark.parametrize(
    ("entry", "options", "reason"),
    [
        (None, {"pooling": "cls"}, "expected pooling cls (as --pooling says), found mean."),
        (SMALL_EN, {}, "expected pooling cls (as BAAI/bge-small-en-v1.5 has it), found mean."),
    ],
    ids=["option", "catalog"],
)
def test_a_contradicted_pooling_is_refused(tmp_path, entry, options, reason):
    """A file that contradicts the catalog or --pooling is an error with both answers."""
    write_json(tmp_path / POOLING, {"pooling_mode": "mean"})
    text = refusal(tmp_path, entry=entry, **options)
    assert f"{tmp_path / POOLING}: {reason}" in text
    advice = "Leave --pooling out" if options else "Give MODEL a name that is not a known one"
    assert f"{advice}. Then the file's pooling counts." in text


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer", "entry", "option", "wanted"),
    [
        (None, None, None, None, 512),
        (None, 128, None, None, 128),
        (None, int(1e30), None, None, 512),
        (None, 1e30, None, None, 512),
        (None, 2048, None, None, 512),
        (256, 128, None, None, 256),
        (256, 128, SMALL_EN, None, 256),
        (1024, None, None, None, 512),
        (None, 128, SMALL_EN, None, 512),
        (256, 128, SMALL_EN, 64, 64),
        (None, None, None, 64, 64),
        (64, None, None, 256, 256),
    ],
)
def test_where_the_maximum_comes_from(tmp_path, sentence_bert, tokenizer, entry, option, wanted):
    """--max-tokens, else sentence_bert_config, the catalog, the tokenizer; never more than there are positions."""
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": sentence_bert} if sentence_bert else {})
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": tokenizer} if tokenizer else {})
    assert recipe(tmp_path, entry=entry, pooling="cls", max_tokens=option).max_tokens == wanted


def test_the_catalog_holds_the_maximum_below_the_positions(tmp_path):
    """A known model with more positions than it was trained for keeps the catalog's maximum."""
    assert recipe(tmp_path, entry=SMALL_EN, positions=1024).max_tokens == 512


@pytest.mark.parametrize(("stored", "option", "found"), [(2, None, 2), (512, 513, 513), (512, 2, 2)])
def test_a_maximum_out_of_range_is_refused(tmp_path, stored, option, found):
    """Fewer tokens than a word needs, or more than the model has positions for, are an error with both limits."""
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": stored})
    text = refusal(tmp_path, pooling="cls", max_tokens=option)
    assert f"{tmp_path}: expected a maximum of 3 to 512 tokens, found {found}.\n    Set --max-tokens." in text


@pytest.mark.parametrize(
    ("stored", "entry", "option", "wanted"),
    [
        ({"query": "q: ", "document": "d: "}, None, None, {"query": "q: ", "passage": "d: "}),
        ({"query": "q: ", "passage": "p: "}, None, None, {"query": "q: ", "passage": ""}),
        ({"query": "q: "}, SMALL_EN, None, {"query": "q: ", "passage": ""}),
        ({"query": "", "document": ""}, SMALL_EN, None, {"query": catalog.ENGLISH, "passage": ""}),
        ({}, SMALL_ZH, None, {"query": catalog.CHINESE, "passage": ""}),
        (None, SMALL_EN, None, {"query": catalog.ENGLISH, "passage": ""}),
        (None, None, None, {"query": "", "passage": ""}),
        ({"query": "q: ", "document": "d: "}, SMALL_EN, "mine: ", {"query": "mine: ", "passage": "d: "}),
        ({"query": "q: "}, SMALL_EN, "", {"query": "", "passage": ""}),
    ],
)
def test_where_the_prompts_come_from(tmp_path, stored, entry, option, wanted):
    """--query-prompt, else config_sentence_transformers.json, else the catalog; an empty one in a file gives way."""
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": stored, "default_prompt_name": None})
    assert recipe(tmp_path, entry=entry, pooling="cls", query_prompt=option).prompts == wanted


# What sentence-transformers 6.2.0 puts in front, with these prompts and this default_prompt_name.
@pytest.mark.parametrize(
    ("stored", "default", "wanted"),
    [
        ({"query": "q: ", "any": "a: "}, "any", {"query": "q: ", "passage": ""}),
        ({"corpus": "c: ", "any": "a: "}, "any", {"query": "", "passage": ""}),
        ({"query": "", "document": "", "any": "a: "}, "any", {"query": "", "passage": ""}),
        ({"query": "q: "}, "query", {"query": "q: ", "passage": ""}),
        ({"query": "q: ", "passage": "p: "}, "passage", {"query": "q: ", "passage": ""}),
        ({"query": "q: ", "passage": "p: ", "document": "d: "}, None, {"query": "q: ", "passage": "d: "}),
        ({"query": None, "document": None}, None, {"query": "", "passage": ""}),
        ({}, "query", {"query": "", "passage": ""}),
    ],
)
def test_prompts_are_those_of_encode_query_and_encode_document(tmp_path, stored, default, wanted):
    """Queries get the prompt named query, passages the one named document; default_prompt_name is for neither."""
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": stored, "default_prompt_name": default})
    assert recipe(tmp_path, pooling="cls").prompts == wanted


@pytest.mark.parametrize(("option", "wanted"), [(None, "d: "), ("p: ", "p: "), ("", "")])
def test_an_option_settles_the_passage_prompt(tmp_path, option, wanted):
    """--passage-prompt counts instead of the files' prompt, an empty one too."""
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": "d: "}})
    assert recipe(tmp_path, pooling="cls", passage_prompt=option).prompts == {"query": "q: ", "passage": wanted}


@pytest.mark.parametrize("stored", [["q: "], "q: ", {"query": 3}, {"query": ["q: "]}, {"sts": {}}])
def test_prompts_that_are_no_texts_are_refused(tmp_path, stored):
    """Prompts of another form are an error with the file's name."""
    path = tmp_path / "config_sentence_transformers.json"
    write_json(path, {"prompts": stored})
    assert f"{path}: expected prompts to be texts by their names, found " in refusal(tmp_path, pooling="cls")


def test_half_a_character_in_a_prompt_is_refused(tmp_path):
    """A prompt that no UTF-8 file can hold is an error, whether a file or an option has it."""
    assert "expected whole characters in the query prompt, found '\\ud800'." in refusal(
        tmp_path, pooling="cls", query_prompt="\ud800"
    )


@pytest.mark.parametrize("name", SENTENCE_FILES)
@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_every_name_of_the_transformer_modules_file(tmp_path, name, place):
    """The maximum is read from each name that sentence-transformers gave this file, in the first module's folder."""
    if place:
        write_json(tmp_path / "modules.json", [
            {"idx": 0, "name": "0", "path": place, "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ])  # fmt: skip
    write_json(tmp_path / place / name, {"max_seq_length": 77})
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 128})
    assert recipe(tmp_path, pooling="cls").max_tokens == 77


def test_an_empty_file_gives_way_to_the_next_name(tmp_path):
    """As in sentence-transformers, the first of the names counts whose file says something."""
    write_json(tmp_path / "sentence_bert_config.json", {})
    write_json(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 77})
    write_json(tmp_path / "sentence_xlnet_config.json", {"max_seq_length": 78})
    assert recipe(tmp_path, pooling="cls").max_tokens == 77


@pytest.mark.parametrize("key", ["processor_kwargs", "tokenizer_args"])
def test_the_maximum_among_the_tokenizers_arguments(tmp_path, key):
    """As in sentence-transformers, model_max_length among the tokenizer's arguments counts before max_seq_length."""
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 77, key: {"model_max_length": 66}})
    assert recipe(tmp_path, pooling="cls").max_tokens == 66


@pytest.mark.parametrize("key", ["config_kwargs", "config_args", "model_kwargs", "processor_kwargs"])
def test_arguments_that_could_change_vectors_are_refused(tmp_path, key):
    """What the Transformer module hands on to transformers is not read, and refused with its name."""
    path = tmp_path / "sentence_bert_config.json"
    write_json(path, {key: {"hidden_act": "relu"}})
    assert f"{path}: expected {key} with nothing but " in refusal(tmp_path, pooling="cls")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("processing_kwargs", {"text": {"max_length": 8}}),
        ("query_length", 6),
        ("document_length", 9),
        ("query_expansion", {"strategy": "fixed", "length": 32}),
        ("module_output_name", "sentence_embedding"),
        ("transformer_task", "fill-mask"),
        ("modality_config", {"text": {"method": "forward", "method_output_name": "pooler_output"}}),
        ("tokenizer_name_or_path", "other/model"),
        ("of_a_later_version", True),
    ],
)
def test_settings_that_could_change_vectors_are_refused(tmp_path, key, value):
    """What sentence-transformers 6.2 reads there, and what later versions may, is never ignored."""
    path = tmp_path / "sentence_bert_config.json"
    write_json(path, {key: value})
    assert f"{path}: expected no {key}" in refusal(tmp_path, pooling="cls")


def test_settings_as_sentence_transformers_6_saves_them(tmp_path):
    """The file that sentence-transformers 6.2.0 writes, keys without a wish included."""
    modality = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    plain = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    none = {"processing_kwargs": {}, "query_length": None, "unpad_inputs": False, "max_seq_length": 77}
    write_json(tmp_path / "sentence_bert_config.json", {**plain, **none, "modality_config": modality})
    assert recipe(tmp_path, pooling="cls").max_tokens == 77


@pytest.mark.parametrize("target", ["cpu-fp32", "portable"])
def test_lower_casing_as_sentence_transformers_does(tmp_path, target):
    """`do_lower_case` in front of a tokenizer that keeps case: special tokens in a text keep their names."""
    folder = write_checkpoint(tmp_path / "checkpoint", lower_case=False)
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    request = Request(model="tiny", target=target, checkpoint=folder, options=Options(pooling="cls", lower_case=True))
    bundle = export(request, tmp_path / "bundle")
    assert bundle.parity.passed
    embedder = Embedder.open(bundle.folder)
    upper, lower, mask = embedder.tokenizer.encode(["WHAT Is", "what is", "[MASK]"])
    assert upper.tolist() == lower.tolist()
    assert mask[1] == bundle.special_ids["mask"]
    if target == "portable":
        assert json.loads((bundle.folder / "sentence_bert_config.json").read_text())["do_lower_case"] is True


@pytest.mark.parametrize("length", ["512", [512], True, -1, float("nan")])
def test_a_maximum_that_is_no_number_is_refused(tmp_path, length):
    """A max_seq_length of another form is an error with the file's name."""
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": length})
    assert "expected sentence_bert_config.json to give the maximum of tokens" in refusal(tmp_path, pooling="cls")


@pytest.mark.parametrize("place", ["../other", "/tmp", "..", 3, ["0_BERT"]])
def test_a_first_module_outside_the_checkpoint_is_refused(tmp_path, place):
    """The first module's folder is one of the checkpoint's own."""
    write_json(tmp_path / "modules.json", [{"idx": 0, "path": place, "type": "Transformer"}, {"type": "Pooling"}])
    assert "expected a module's path to be a folder beside it" in refusal(tmp_path, pooling="cls")


def test_a_default_prompt_that_is_none_is_refused(tmp_path):
    """A default_prompt_name without a prompt is an error with its name, as in sentence-transformers."""
    path = tmp_path / "config_sentence_transformers.json"
    write_json(path, {"prompts": {"query": "q: "}, "default_prompt_name": "sts"})
    text = refusal(tmp_path, pooling="cls")
    assert f"{path}: expected default_prompt_name to be one of its prompts (query, document), found 'sts'." in text


def test_the_name_decides_on_a_contradiction_about_case(zh):
    """bge-small-zh's files contradict each other on case: under another name an error says so, with both ways out."""
    text = refusal(zh)
    assert f"{zh}: expected one answer, found two: sentence_bert_config.json says do_lower_case true" in text
    assert "the tokenizer keeps case." in text
    assert "sentence-transformers lower-cases, FlagEmbedding does not" in text
    assert "--lower-case or --keep-case." in text


@pytest.mark.parametrize("entry", [SMALL_ZH, None], ids=["catalog", "other"])
@pytest.mark.parametrize("lower_case", [True, False])
def test_an_option_settles_the_case(zh, entry, lower_case):
    """--lower-case and --keep-case decide, for known models too."""
    assert recipe(zh, entry=entry, lower_case=lower_case).lower_cased is lower_case


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer"),
    [(True, True), (True, None), (False, True), (False, False), (None, True), (None, False)],
)
def test_without_a_contradiction_the_tokenizer_decides_on_case(tiny_folder, sentence_bert, tokenizer):
    """Nothing is lower-cased before the tokenizer where it does that itself, or nothing asks for it."""
    write_json(tiny_folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": sentence_bert})
    if tokenizer is None:  # BertTokenizer lower-cases by default
        edit_json(tiny_folder / "tokenizer_config.json", remove=["do_lower_case"])
    else:
        edit_json(tiny_folder / "tokenizer_config.json", do_lower_case=tokenizer)
    assert recipe(tiny_folder, pooling="cls").lower_cased is False


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_contradiction_is_seen_whichever_file_keeps_case(tiny_folder, name):
    """The loaded tokenizer counts: case kept by a flag, or by tokenizer.json where the class does not rewrite it."""
    write_json(tiny_folder / "sentence_bert_config.json", {"do_lower_case": True})
    if name == "tokenizer_config.json":
        edit_json(tiny_folder / name, do_lower_case=False)
    else:
        edit_json(tiny_folder / name, normalizer=None)
        edit_json(tiny_folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert "expected one answer, found two" in refusal(tiny_folder, pooling="cls")


@pytest.mark.parametrize(
    "file", ["sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"]
)
def test_a_damaged_settings_file_is_named(tmp_path, file):
    """A settings file that is cut is an error with its name."""
    (tmp_path / file).write_text('{"prompts": {"query": ')
    assert f"{tmp_path / file}: expected JSON, found " in refusal(tmp_path, pooling="cls")
