"""Beginnings that many texts share, computed once: prefixes, and few-shot examples.

In: an Embedder, by what it can do. Out: vectors of whole texts.
`Embedder.with_prefix` and `with_examples` make them.
"""
