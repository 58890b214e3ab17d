"""Errors of bge-onnx. Each says what was wanted, what was found and what to do."""


class BgeError(Exception):
    """Any error that bge-onnx raises on purpose."""


class BundleError(BgeError):
    """A bundle is missing, damaged, edited or of a newer format."""


class OperatorsError(BundleError):
    """A bundle needs operators of bge_kernels that are not installed, or another version of them."""


class CheckpointError(BgeError):
    """A checkpoint cannot be exported as it is: its configuration, weights or files."""


class ProviderError(BgeError):
    """ONNX Runtime here does not offer the execution provider that a bundle was made for."""


class InputError(BgeError, ValueError):
    """A caller's texts or arguments cannot be embedded."""


class InstallationError(BgeError, ImportError):
    """A package is missing that an extra of bge-onnx brings."""


def first_line(error: BaseException) -> str:
    """An error's class and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
