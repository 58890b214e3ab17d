"""The vocabulary of graphs: operations, each a call of a function whose body is standard operators.

In: shapes and names. Out: onnx-ir values, calls and functions.
Models are written in these words, and lowering knows calls by these names.
Nothing here reads a file or knows a model: only bge_onnx's names of inputs are imported.
"""
