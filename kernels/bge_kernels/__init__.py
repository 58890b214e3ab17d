"""Optional custom operators for ONNX Runtime. None yet: a kernel exists only while it beats the best built-in operator."""
