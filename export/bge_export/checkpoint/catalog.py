"""The models we know by name: where they are, what they expect, under which licence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `bge-export list` and --help work without the extra [export]
    from bge_export.graph.pooling import Pooling

ENGLISH = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章："


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One published model. `revision` pins the commit of its Hub repository."""

    repository: str
    revision: str
    licence: str
    parameters: int  # pooler included, as published
    config: dict[str, Any]  # what --random-weights builds
    query_prompt: str
    lower_case: bool  # of its tokenizer
    pooling: Pooling = "cls"
    normalize: bool = True
    max_tokens: int = 512
    heads: tuple[str, ...] = ("dense",)

    @property
    def short_name(self) -> str:
        """The name without its owner."""
        return self.repository.split("/")[1]


# size -> hidden_size, num_hidden_layers, num_attention_heads, intermediate_size
SIZES = {
    "small-en": (384, 12, 12, 1536),
    "small-zh": (512, 4, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


def _bert(name: str, revision: str, parameters: int) -> Entry:
    _, size, language = name.removesuffix("-v1.5").split("-")
    width, layers, heads, inner = SIZES.get(f"{size}-{language}") or SIZES[size]
    config = {
        "model_type": "bert",
        "vocab_size": 30522 if language == "en" else 21128,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "hidden_act": "gelu",
    }
    return Entry(
        repository=f"BAAI/{name}",
        revision=revision,
        licence="mit",
        parameters=parameters,
        config=config,
        query_prompt=ENGLISH if language == "en" else CHINESE,
        # small-zh keeps case though its vocabulary has no capitals: such words become [UNK], in FlagEmbedding too
        lower_case=not name.startswith("bge-small-zh"),
    )


BGE_M3 = Entry(
    repository="BAAI/bge-m3",
    revision="5617a9f61b028005a4858fdac845db406aefb181",
    licence="mit",
    parameters=567_754_752,
    config={
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "hidden_act": "gelu",
    },
    query_prompt="",
    lower_case=False,
    max_tokens=8192,
    heads=("dense", "sparse", "colbert"),
)

BGE_EN_ICL = Entry(
    repository="BAAI/bge-en-icl",
    revision="971c7e1445cc86656ca0bd85ed770b8675a40bb5",
    licence="apache-2.0",
    parameters=7_110_672_384,
    config={
        "model_type": "mistral",
        "vocab_size": 32003,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "hidden_act": "silu",
        "dtype": "bfloat16",  # half the disk; BAAI's is float32
    },
    query_prompt="",  # made of an instruction and examples
    lower_case=False,
    pooling="last",
    max_tokens=32768,
)

BGE_GEMMA2 = Entry(
    repository="BAAI/bge-multilingual-gemma2",
    revision="992e13d8984fde2c31ef8a3cb2c038aeec513b8a",
    licence="gemma",
    parameters=9_241_713_152,
    config={
        "model_type": "gemma2",
        "vocab_size": 256002,
        "hidden_size": 3584,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "dtype": "bfloat16",
    },
    query_prompt="<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>",
    lower_case=False,
    pooling="last",
    max_tokens=8192,
)


BGE_CODE = Entry(
    repository="BAAI/bge-code-v1",
    revision="main",  # no commit is known to us
    licence="apache-2.0",
    parameters=1_543_714_304,
    config={
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
    },
    query_prompt="",  # a task's instruction, as <instruct>{}\n<query>{}
    lower_case=False,
    pooling="last",
    max_tokens=32768,
)

QWEN3_EMBEDDING = Entry(
    repository="Qwen/Qwen3-Embedding-0.6B",
    revision="main",  # no commit is known to us
    licence="apache-2.0",
    parameters=595_776_512,
    config={
        "model_type": "qwen3",
        "vocab_size": 151669,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    },
    query_prompt="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    lower_case=False,
    pooling="last",
    max_tokens=32768,
)


def _reranker(name: str, parameters: int, *, size: str, tokens: int, licence: str = "mit") -> Entry:
    width, layers, heads, inner = SIZES[size]
    return Entry(
        repository=f"BAAI/{name}",
        revision="main",  # no commit is known to us
        licence=licence,
        parameters=parameters,
        config={
            **BGE_M3.config,
            "architectures": ["XLMRobertaForSequenceClassification"],
            "id2label": {"0": "LABEL_0"},
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": tokens + 2,
        },
        query_prompt="",
        lower_case=False,
        normalize=False,
        max_tokens=tokens,
        heads=("score",),
    )


BGE_RERANKER_GEMMA = Entry(
    repository="BAAI/bge-reranker-v2-gemma",
    revision="main",  # no commit is known to us
    licence="apache-2.0",
    parameters=2_506_172_416,
    config={
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "vocab_size": 256000,
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 16384,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "gelu",
        "dtype": "bfloat16",  # half the disk; BAAI's is float32
    },
    query_prompt="",  # FlagEmbedding's "A: "
    lower_case=False,
    pooling="last",
    normalize=False,
    max_tokens=1024,  # as it was trained; a question stands behind
    heads=("score",),
)

# Revisions: embeddings-benchmark/mteb, mteb/models/bge_models.py, the registry of what was evaluated.
ENTRIES = (
    _bert("bge-small-en", "4778d71a06863076696b03fd2777eb118712cad8", 33_360_000),
    _bert("bge-base-en", "b737bf5dcc6ee8bdc530531266b4804a5d77b5d8", 109_482_240),
    _bert("bge-large-en", "abe7d9d814b775ca171121fb03f394dc42974275", 335_141_888),
    _bert("bge-small-zh", "1d2363c5de6ce9ba9c890c8e23a4c72dce540ca8", 23_953_920),
    _bert("bge-base-zh", "0e5f83d4895db7955e4cb9ed37ab73f7ded339b6", 102_267_648),
    _bert("bge-large-zh", "b5d9f5c027e87b6f0b6fa4b614f8f9cdc45ce0e8", 325_522_432),
    _bert("bge-small-en-v1.5", "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a", 33_360_000),
    _bert("bge-base-en-v1.5", "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a", 109_482_240),
    _bert("bge-large-en-v1.5", "d4aa6901d3a41ba39fb536a557fa166f842b0e09", 335_141_888),
    _bert("bge-small-zh-v1.5", "7999e1d3359715c523056ef9478215996d62a620", 23_953_920),
    _bert("bge-base-zh-v1.5", "f03589ceff5aac7111bd60cfc7d497ca17ecac65", 102_267_648),
    _bert("bge-large-zh-v1.5", "79e7739b6ab944e86d6171e44d24c997fc1e0116", 325_522_432),
    dataclasses.replace(
        _bert("bge-large-zh", "main", 325_522_432), repository="BAAI/bge-large-zh-noinstruct", query_prompt=""
    ),
    BGE_M3,
    dataclasses.replace(BGE_M3, repository="BAAI/bge-m3-unsupervised", revision="main", heads=("dense",)),
    BGE_EN_ICL,
    BGE_GEMMA2,
    BGE_CODE,
    QWEN3_EMBEDDING,
    BGE_RERANKER_GEMMA,
    _reranker("bge-reranker-base", 278_044_417, size="base", tokens=512),
    _reranker("bge-reranker-large", 559_891_457, size="large", tokens=512),
    _reranker("bge-reranker-v2-m3", 567_755_777, size="large", tokens=8192, licence="apache-2.0"),
)


def find(model: str) -> Entry | None:
    """The entry of a Hub name (`BAAI/bge-small-en`) or a short name (`bge-small-en`), or None."""
    return next((entry for entry in ENTRIES if model in (entry.repository, entry.short_name)), None)
