"""A bundle's graph into ONNX Runtime, on the provider that it was lowered for and no other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.errors import BundleError, ProviderError, first_line
from bge_onnx.run.cuda import CUDA, NO_DEVICE, OUT_OF_MEMORY, device_held, provider_options, records, says
from bge_onnx.run.graph import check_graph
from bge_onnx.run.kernels import libraries, register
from bge_onnx.run.onnx_runtime import ort


def load(bundle: Bundle, intra_op_threads: int, device: int, device_memory: int | None) -> ort.InferenceSession:
    """Load the bundle's graph with so many threads. Its files must be as they were when it was opened.

    device         the number of the GPU that it runs on, if it does
    device_memory  bytes of it that may be taken; None for all

    Raises ProviderError: no such provider or device, or no room there. BundleError: no graph, or another bundle now.
    """
    bundle.require_unchanged()
    session = _session(bundle, intra_op_threads, device, device_memory)
    _check_provider(bundle, session.get_providers())
    bundle.require_unchanged()  # while it was loaded
    check_graph(bundle, session)
    return session


def _session(bundle: Bundle, intra_op_threads: int, device: int, device_memory: int | None) -> ort.InferenceSession:
    _check_provider(bundle, ort.get_available_providers())
    operators = libraries(bundle)
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # lengths vary: patterns would pile up without bound
    # The graph is lowered already. Higher levels fuse Add and LayerNormalization back into SkipLayerNormalization,
    # which costs 8 % of a layer on the CPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    provider: str | tuple[str, dict[str, str]] = bundle.provider
    if bundle.provider == CUDA:
        _preload()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # not even one node
        provider = (CUDA, provider_options(bundle, device, device_memory))
    unwanted = ["MatMulAddFusion"] if records(bundle) else None  # see lowering.cuda: recorded graphs have no Gemm
    for library in operators:
        register(options, library)
    try:
        with device_held(bundle):
            return ort.InferenceSession(
                bundle.folder / bundle.graph,
                options,
                providers=[provider],
                enable_fallback=0,
                disabled_optimizers=unwanted,
            )
    except Exception as error:  # onnxruntime's exceptions have no common class but Exception
        if bundle.provider == CUDA and says(error, OUT_OF_MEMORY):
            raise ProviderError(
                f"device {device}: expected room for the weights of {bundle.name}, found {first_line(error)}\n"
                "    Free memory on the device, or take another with devices=."
            ) from error
        if bundle.provider == CUDA and says(error, NO_DEVICE):
            raise ProviderError(
                f"device {device}: expected a GPU that ONNX Runtime {ort.__version__} can use, found "
                f"{first_line(error)}\n"
                "    nvidia-smi lists the devices and the driver; bge-onnx[cuda] needs the CUDA libraries too."
            ) from error
        raise BundleError(
            f"{bundle.folder / bundle.graph}: ONNX Runtime {ort.__version__} cannot load this graph: {error}\n"
            "    Check the files with `bge info --verify`, or export the bundle again."
        ) from error


@cache
def _preload() -> None:
    """Load CUDA's libraries from NVIDIA's packages, once.

    ONNX Runtime's module prints a message where they are missing, which belongs on stderr. So the module gets a `print`
    of its own. sys.stdout is not redirected: all threads share it, and two that redirect it at once would restore
    each other's value.
    """
    ort.print = partial(print, file=sys.stderr)
    ort.preload_dlls()


def _check_provider(bundle: Bundle, offered: Sequence[str]) -> None:
    """ONNX Runtime only warns when a provider is missing, then runs on the CPU: refuse instead."""
    if bundle.provider not in offered:
        raise ProviderError(
            f"the bundle {bundle.name} is lowered for {bundle.provider}; onnxruntime {ort.__version__} here offers "
            f"{', '.join(offered)} only.\n"
            "    Install bge-onnx[cuda] for CUDA, or export a bundle for cpu."
        )
