"""The command `bge-export`: one file a command. Arguments in, calls of the packages below, results on stdout.

Everything heavy is imported inside the commands: `--help` needs neither PyTorch nor onnx.
Nothing imports from here.
"""
