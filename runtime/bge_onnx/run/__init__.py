"""Token ids to a graph's outputs: batches, ONNX Runtime's sessions, threads, GPUs.

In: a Bundle and token ids. Out: batches with their arrays, as they get ready.
`batches` decides what is computed together; `session` where.
Heads and scores are not known here.
"""
