"""Proving: the same vectors from PyTorch, and the largest error of a bundle's against them.

In: a checkpoint and its bundle. Out: a Parity, every head with its limit.
PyTorch is the oracle and rounds as the lowering does; `compare` runs without it.
Nothing here changes a bundle.
"""
