"""Quality on real data: sentence pairs and retrieval, scored as sentence-transformers, BEIR and trec_eval do.

In: a task's files and a system that embeds. Out: scores, and how close two systems are.
PyTorch's scores are kept for the next time.
Nothing here builds or changes a bundle.
"""
