"""Optional custom operators for ONNX Runtime. None yet: one exists only while it beats the best built-in operator."""
