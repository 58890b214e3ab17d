"""Writing a bundle: its folder whole or not at all, its files, and the manifest that lists them.

In: a lowered graph, a tokenizer, a described Bundle. Out: a folder that bge_onnx opens.
What is measured later is recorded in the bundle that was measured, and in no other.
Nothing here reads a checkpoint or computes a vector.
"""
