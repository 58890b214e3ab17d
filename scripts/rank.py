"""Rank a few passages for a few queries: python scripts/rank.py BUNDLE."""

from __future__ import annotations

import sys

from bge_onnx import Embedder, similarity, top_k

TEXTS = {
    "en": (
        ["what is BM25?", "how do plants make sugar?", "capital of Mongolia"],
        [
            "BM25 is a ranking function that search engines use to estimate the relevance of documents.",
            "Photosynthesis turns water, carbon dioxide and sunlight into glucose and oxygen.",
            "Ulaanbaatar is the largest city of Mongolia and the seat of its government.",
            "A cosine similarity of one means that two vectors point in the same direction.",
            "Sugar cane is grown in warm climates and pressed for its juice.",
        ],
    ),
    "zh": (
        ["什么是向量检索", "蒙古国的首都", "植物如何制造糖分"],
        [
            "向量检索通过比较文本向量之间的距离来查找相关内容。",
            "乌兰巴托是蒙古国最大的城市，也是该国政府所在地。",
            "光合作用利用阳光把水和二氧化碳转化为葡萄糖和氧气。",
            "甘蔗生长在温暖的气候中，可以榨取糖汁。",
        ],
    ),
}


def main() -> None:
    bge = Embedder.open(sys.argv[1])
    queries, passages = TEXTS["zh" if "-zh" in bge.bundle.model else "en"]
    vectors = bge.embed_passages(passages)
    scores = similarity(bge.embed_queries(queries), vectors)
    print(f"{len(vectors)} passages, vectors of width {vectors.dense.shape[1]}")
    for query, row, best in zip(queries, scores, top_k(scores, 3), strict=True):
        print(f"\n{query}")
        for column in best:
            print(f"  {row[column]:.4f}  {passages[column]}")
    if len(bge.bundle.outputs) == 3:
        rank_by_all_heads(bge, queries[0], passages)


def rank_by_all_heads(bge: Embedder, query: str, passages: list[str]) -> None:
    scores = bge.score([(query, passage) for passage in passages], weights=(0.4, 0.2, 0.4))
    print(f"\n{query}   by three heads, weights 0.4, 0.2, 0.4\n  hybrid  dense   sparse  colbert")
    for place in top_k(scores["colbert+sparse+dense"][None], 3)[0]:
        columns = [scores[mode][place] for mode in ("colbert+sparse+dense", "dense", "sparse", "colbert")]
        print("  " + "  ".join(f"{value:.4f}" for value in columns) + f"  {passages[place]}")


if __name__ == "__main__":
    main()
