"""Cross-encoders: BERT and XLM-R with a classification head of one label, which scores a pair of texts.

Mirrors transformers' BertForSequenceClassification (pooler, then classifier) and XLMRobertaForSequenceClassification:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/modeling_bert.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/xlm_roberta/modeling_xlm_roberta.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_export.checkpoint.config import quoted, read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.modules import Dense, Modules
from bge_onnx.bundle.heads import SCORE
from bge_onnx.errors import CheckpointError

TASK = "ForSequenceClassification"
LAYERS = {"bert": ("pooler.dense", "classifier"), "xlm-roberta": ("classifier.dense", "classifier.out_proj")}
"""By model type: the layer with a tanh behind it, and the one that gives the score."""


def read(folder: Path) -> Modules | None:
    """The head of a cross-encoder; None where a checkpoint is none.

    Raises CheckpointError: several labels, or a kind of model whose head we do not know.
    """
    path = model_folder(folder) / "config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and any(str(name).endswith(TASK) for name in architectures)
    if not named:
        return None
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)  # transformers' default
    if count != 1:
        raise CheckpointError(
            f"{path}: expected a reranker, with one label, found {quoted(labels or count)}.\n"
            "    A model with several labels classifies; it gives no score to rank by."
        )
    layers, width = LAYERS.get(str(config.get("model_type"))), config.get("hidden_size")
    if layers is None or type(width) is not int:
        raise CheckpointError(
            f"{path}: expected a reranker of {' or '.join(LAYERS)}, found {quoted(config.get('model_type'))}.\n"
            "    This architecture's head is not supported."
        )
    names = dict(zip(("hidden", "score"), layers, strict=True))
    return Modules(
        pooling="cls",
        steps=(
            Dense(
                path=names["hidden"],
                linear=names["hidden"],
                file=False,
                inputs=width,
                outputs=width,
                bias=True,
                activation="tanh",
            ),
            Dense(
                path=names["score"],
                linear=names["score"],
                file=False,
                inputs=width,
                outputs=1,
                bias=True,
                activation="identity",
            ),
        ),
        normalize=False,
        head=SCORE,
    )
