"""Reading a checkpoint: which model it is, how its texts become vectors, and its weights, one by one.

In: a folder, or a name on the Hub. Out: a Recipe, a configuration, lazy Weights, the checkpoint's own tokenizer.
Every form of the published files gives the same; what could change a vector and is not understood is a CheckpointError.
Of graphs only the names of poolings are known here; nothing is built, lowered or written.
"""
