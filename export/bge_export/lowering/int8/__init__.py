"""Linear layers on bytes: rotated rows, rounded weights, GPTQ on calibration texts, and the operators for them.

In: float32 weights, and maybe what layers are given on some texts. Out: bytes and scales, and the calls' replacements.
`rounding` and `gptq` are numpy alone; `calibrate` runs PyTorch.
Other targets' lowering is not touched from here.
"""
