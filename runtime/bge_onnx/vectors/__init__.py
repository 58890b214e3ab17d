"""A graph's outputs to vectors, and vectors to scores and files.

In: batches with their arrays. Out: Embeddings in the caller's order; similarities; .npz and JSON lines.
Nothing here runs a graph.
"""
