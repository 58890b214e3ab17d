"""Lowering: a graph for a target, by swapping calls and rounding weights; nothing is searched for.

In: a built graph. Out: the graph that a target runs, and how PyTorch must round to compute the same.
`targets` is the table of what a target is; a file each says how one is lowered.
Checkpoints are read by `checkpoint`; nothing is written or compared here.
"""
