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
    """One published model.

    revision    of its Hub repository: a commit, or "main" where none is known to us
    parameters  pooler included, as published
    config      what --random-weights builds
    template    of a task's instruction and a query, where queries have one
    lower_case  of its tokenizer
    """

    repository: str
    revision: str
    licence: str
    parameters: int
    config: dict[str, Any]
    query_prompt: str = ""
    passage_prompt: str = ""
    template: str = ""
    lower_case: bool = False
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
MARKED_TEMPLATE = "<instruct>{}\n<query>{}"
INSTRUCT_TEMPLATE = "Instruct: {}\nQuery: {}"


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
    template=MARKED_TEMPLATE,  # behind examples, if there are any
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
    template=MARKED_TEMPLATE,
    query_prompt="<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>",
    pooling="last",
    max_tokens=8192,
)


BGE_CODE = Entry(
    repository="BAAI/bge-code-v1",
    revision="main",
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
    template=MARKED_TEMPLATE,
    pooling="last",
    max_tokens=32768,
)

QWEN3_EMBEDDING = Entry(
    repository="Qwen/Qwen3-Embedding-0.6B",
    revision="main",
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
    template="Instruct: {}\nQuery:{}",  # without a space
    pooling="last",
    max_tokens=32768,
)


def _xlm_roberta(size: str, tokens: int = 512) -> dict[str, Any]:
    width, layers, heads, inner = SIZES[size]
    return {
        **BGE_M3.config,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": tokens + 2,
    }


def _reranker(repository: str, parameters: int, *, size: str, tokens: int = 512, licence: str = "mit") -> Entry:
    return Entry(
        repository=repository,
        revision="main",
        licence=licence,
        parameters=parameters,
        config={
            **_xlm_roberta(size, tokens),
            "architectures": ["XLMRobertaForSequenceClassification"],
            "id2label": {"0": "LABEL_0"},
        },
        normalize=False,
        max_tokens=tokens,
        heads=("score",),
    )


BGE_RERANKER_GEMMA = Entry(
    repository="BAAI/bge-reranker-v2-gemma",
    revision="main",
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
    pooling="last",
    normalize=False,
    max_tokens=1024,  # as it was trained; a question stands behind
    heads=("score",),
)

QWEN3_SIZES = {"4B": (2560, 9728), "8B": (4096, 12288)}  # hidden_size, intermediate_size; all have 36 layers


def _qwen3(repository: str, parameters: int, *, size: str, vocabulary: int, template: str) -> Entry:
    width, inner = QWEN3_SIZES[size]
    config = {
        **QWEN3_EMBEDDING.config,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": inner,
    }
    return dataclasses.replace(
        QWEN3_EMBEDDING, repository=repository, parameters=parameters, config=config, template=template
    )


def _e5(name: str, parameters: int) -> Entry:
    """An English E5: mean pooling, a word in front of either side."""
    found = _bert(f"bge-{name.split('-')[1]}-en", "main", parameters)
    return dataclasses.replace(
        found, repository=f"intfloat/{name}", pooling="mean", query_prompt="query: ", passage_prompt="passage: "
    )


def _multilingual_e5(size: str, parameters: int) -> Entry:
    small = {**_bert("bge-small-en", "", 0).config, "vocab_size": 250037}  # a BERT with XLM-R's tokenizer
    return Entry(
        repository=f"intfloat/multilingual-e5-{size}",
        revision="main",
        licence="mit",
        parameters=parameters,
        config=small if size == "small" else _xlm_roberta(size),
        query_prompt="query: ",
        passage_prompt="passage: ",
        pooling="mean",
    )


def _mistral(repository: str, licence: str) -> Entry:
    """A Mistral of 7 billion parameters that takes a task's instruction."""
    config = {**BGE_EN_ICL.config, "vocab_size": 32000}
    return dataclasses.replace(
        BGE_EN_ICL,
        repository=repository,
        revision="main",
        licence=licence,
        parameters=7_110_660_096,
        config=config,
        template=INSTRUCT_TEMPLATE,
        max_tokens=4096,
    )


def _gte(size: str, parameters: int, *, chinese: bool = False) -> Entry:
    found = _bert(f"bge-{size}-{'zh' if chinese else 'en'}", "main", parameters)
    return dataclasses.replace(
        found,
        repository=f"thenlper/gte-{size}{'-zh' if chinese else ''}",
        pooling="cls" if chinese else "mean",
        query_prompt="",
    )


E5_LARGE_MULTILINGUAL = _multilingual_e5("large", 559_890_432)
OTHERS = (
    # what FlagEmbedding's AUTO_EMBEDDER_MAPPING has besides, of architectures that we know
    dataclasses.replace(
        _bert("bge-base-en", "main", 109_482_240), repository="BAAI/llm-embedder", query_prompt=""
    ),  # each task has instructions of its own
    dataclasses.replace(BGE_M3, repository="BAAI/bge-m3-retromae", revision="main", heads=("dense",)),
    _qwen3(
        "BAAI/bge-reasoner-embed-qwen3-8b-0923", 7_568_405_504, size="8B", vocabulary=151936, template=INSTRUCT_TEMPLATE
    ),
    _qwen3("Qwen/Qwen3-Embedding-4B", 4_021_774_336, size="4B", vocabulary=151665, template=QWEN3_EMBEDDING.template),
    _qwen3("Qwen/Qwen3-Embedding-8B", 7_567_295_488, size="8B", vocabulary=151665, template=QWEN3_EMBEDDING.template),
    *(
        _e5(f"e5-{size}{version}", parameters)
        for version in ("", "-v2")
        for size, parameters in (("small", 33_360_000), ("base", 109_482_240), ("large", 335_141_888))
    ),
    _multilingual_e5("small", 117_653_760),
    _multilingual_e5("base", 278_043_648),
    E5_LARGE_MULTILINGUAL,
    dataclasses.replace(
        E5_LARGE_MULTILINGUAL,
        repository="intfloat/multilingual-e5-large-instruct",
        query_prompt="",
        passage_prompt="",
        template=INSTRUCT_TEMPLATE,
    ),
    _mistral("intfloat/e5-mistral-7b-instruct", "mit"),
    _mistral("Salesforce/SFR-Embedding-Mistral", "cc-by-nc-4.0"),
    _mistral("Salesforce/SFR-Embedding-2_R", "cc-by-nc-4.0"),
    _mistral("Linq-AI-Research/Linq-Embed-Mistral", "cc-by-nc-4.0"),
    _gte("small", 33_360_000),
    _gte("base", 109_482_240),
    _gte("large", 335_141_888),
    _gte("base", 102_267_648, chinese=True),
    _gte("large", 325_522_432, chinese=True),
    Entry(
        repository="maidalun1020/bce-embedding-base_v1",
        revision="main",
        licence="apache-2.0",
        parameters=278_043_648,
        config=_xlm_roberta("base"),
    ),
    _reranker("maidalun1020/bce-reranker-base_v1", 278_044_417, size="base", licence="apache-2.0"),
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
    _reranker("BAAI/bge-reranker-base", 278_044_417, size="base"),
    _reranker("BAAI/bge-reranker-large", 559_891_457, size="large"),
    _reranker("BAAI/bge-reranker-v2-m3", 567_755_777, size="large", tokens=8192, licence="apache-2.0"),
    *OTHERS,
)


OWN_CODE = "it runs code of its own from the Hub, which a bundle cannot hold"
LOOKS_AHEAD = "its code on the Hub lets tokens attend to later ones, which no decoder here does"
LEFT_OUT = {
    "bge-reranker-v2-minicpm-layerwise": OWN_CODE,
    "bge-reranker-v2.5-gemma2-lightweight": OWN_CODE,
    "gte-multilingual-base": OWN_CODE,
    "gte-multilingual-reranker-base": OWN_CODE,
    "gte-base-en-v1.5": OWN_CODE,
    "gte-large-en-v1.5": OWN_CODE,
    "gte-Qwen2-1.5B-instruct": LOOKS_AHEAD,
    "gte-Qwen2-7B-instruct": LOOKS_AHEAD,
    "gte-Qwen1.5-7B-instruct": LOOKS_AHEAD,
    "jina-reranker-v1-turbo-en": OWN_CODE,
    "jina-reranker-v2-base-multilingual": OWN_CODE,
}
"""Models that FlagEmbedding knows and we do not export, by their short names, and why."""


def why_left_out(model: str) -> str | None:
    """Why a model of a Hub name is not exported; None for all others."""
    return LEFT_OUT.get(model.rsplit("/", 1)[-1])


def find(model: str) -> Entry | None:
    """The entry of a Hub name (`BAAI/bge-small-en`) or a short name (`bge-small-en`), or None."""
    return next((entry for entry in ENTRIES if model in (entry.repository, entry.short_name)), None)
