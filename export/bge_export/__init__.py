"""Checkpoints to bundles: graphs built from weights, lowered for a target, proven equal to PyTorch."""
