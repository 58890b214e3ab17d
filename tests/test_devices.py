"""Several devices behind one Embedder, as processes; here their sessions run on the CPU."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_export import export as exporting
from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.lowering.lower import Lowering
from bge_export.lowering.targets import TARGETS, Target
from bge_export.request import Request
from bge_onnx import BundleError, Embedder, InputError, ProviderError
from bge_onnx.run.batches import Batch, plan_batches
from bge_onnx.run.cuda import CUDA, provider_options, records, replay_size, warm_up_batches
from bge_onnx.run.devices import DeviceProcess, attention_kernels, kernels_of

HEADS = ("dense", "sparse", "colbert")


@pytest.fixture(scope="module")
def bundle(m3_checkpoint, tmp_path_factory):
    """A packed bundle of an XLM-R in standard operators, for the CPU's provider."""
    with pytest.MonkeyPatch.context() as patch:
        target = Target(
            name="packed",
            causal=False,
            provider="CPUExecutionProvider",
            layout="packed",
            lowering=lambda *_: Lowering({}),
        )
        patch.setitem(TARGETS["xlm-roberta"], "packed", target)
        patch.setattr(exporting, "NAMES", (*exporting.NAMES, "packed"))
        options = Options(pooling="cls")
        request = Request(model="m3", target="packed", checkpoint=m3_checkpoint, options=options, check=False)
        return export(request, tmp_path_factory.mktemp("bundle") / "packed")


def on_devices(bundle, *devices):
    """The bundle, open on processes for these devices."""
    embedder = Embedder.open(bundle.folder, threads=1)
    return dataclasses.replace(embedder, session=dataclasses.replace(embedder.session, devices=devices))


@pytest.fixture
def several(bundle):
    """The bundle on two."""
    return on_devices(bundle, 0, 1)


def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(5, 800, length) for length in rng.integers(1, 60, 40)]


def test_several_devices_give_the_vectors_of_one(several, m3, monkeypatch):
    """Every head, in the texts' order, whichever process a batch ran in; both ran some."""
    ran = []
    run = DeviceProcess.run
    monkeypatch.setattr(
        DeviceProcess, "run", lambda self, batch, names: (ran.append(self.device), run(self, batch, names))[1]
    )
    found = several.embed_token_ids(texts(), heads=HEADS, budget_tokens=64)
    wanted = m3.embed_token_ids(texts(), heads=HEADS)
    np.testing.assert_allclose(found.dense, wanted.dense, atol=1e-6)
    assert [list(row) for row in found.sparse] == [list(row) for row in wanted.sparse]
    np.testing.assert_allclose(np.concatenate(found.colbert), np.concatenate(wanted.colbert), atol=1e-6)
    (devices,) = several.session._on_devices
    assert devices.idle.qsize() == 2
    assert set(ran) == {0, 1}


def test_a_process_that_dies_is_an_error(several):
    """What it was given raises ProviderError with the device and the status, and nothing waits for ever."""
    several.embed_token_ids(texts()[:2])
    (devices,) = several.session._on_devices
    process = devices.idle.get()
    os.kill(process._process.pid, signal.SIGKILL)
    devices.idle.put(process)
    with pytest.raises(ProviderError, match=r"device \d: expected its process to run, found that it ended with -9"):
        several.embed_token_ids(texts(), budget_tokens=16)


def test_an_error_in_a_process_arrives(bundle, m3_checkpoint, tmp_path):
    """A bundle for CUDA without CUDA: the error that one device gives, from another process."""
    request = Request(
        model="m3", target="cuda-fp16", checkpoint=m3_checkpoint, options=Options(pooling="cls"), check=False
    )
    embedder = Embedder.open(export(request, tmp_path / "bundle").folder, devices=[0, 1])
    with pytest.raises(ProviderError, match="is lowered for CUDAExecutionProvider"):
        embedder.embed(["a", "b"])


def test_processes_end_with_the_embedder(bundle):
    """No process is left when an Embedder is gone."""
    embedder = on_devices(bundle, 0, 1)
    embedder.embed_token_ids(texts()[:4])
    (devices,) = embedder.session._on_devices
    first, second = (devices.idle.get() for _ in range(2))
    running = [first._process, second._process]
    embedder.session.close()
    del devices, first, second
    assert [process.wait(timeout=10) for process in running] == [0, 0]


@pytest.mark.parametrize(
    ("devices", "memory", "found"),
    [
        ([0], None, "devices: expected a bundle for GPUs, found tiny-m3-cpu-fp32"),
        (None, 1 << 30, "devices: expected a bundle for GPUs"),
    ],
)
def test_devices_of_a_cpu_bundle_are_refused(m3_bundle, devices, memory, found):
    """They would do nothing."""
    with pytest.raises(InputError, match=found):
        Embedder.open(m3_bundle, devices=devices, device_memory=memory)


@pytest.mark.parametrize(
    ("devices", "memory", "found"),
    [
        ([], None, r"distinct numbers from 0 on, as nvidia-smi lists them, found \[\]"),
        ([0, 0], None, r"distinct numbers from 0 on, as nvidia-smi lists them, found \[0, 0\]"),
        ([-1], None, "distinct numbers from 0 on"),
        (["cuda:0"], None, "distinct numbers from 0 on"),
        ([0], 0, "device_memory: expected bytes, at least 1, found 0"),
    ],
)
def test_devices_that_cannot_be(m3_checkpoint, tmp_path, devices, memory, found):
    """None, one twice, no number, no memory: named before anything is loaded."""
    options = Options(pooling="cls")
    request = Request(model="m3", target="cuda-fp16", checkpoint=m3_checkpoint, options=options, check=False)
    folder = export(request, tmp_path / "bundle").folder
    with pytest.raises(InputError, match=found):
        Embedder.open(folder, devices=devices, device_memory=memory)


def test_memory_and_cuda_graphs_are_asked_for(bundle, m3_bundle):
    """The arena's limit in bytes; CUDA graphs for packed float16 alone, which alone replays."""
    packed = dataclasses.replace(bundle, target="cuda-fp16", provider=CUDA)
    options = provider_options(packed, 3, 123)
    assert (options["device_id"], options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("3", "123", "1")
    whole = provider_options(dataclasses.replace(packed, layout="equal"), 0)
    assert "gpu_mem_limit" not in whole
    assert whole["enable_cuda_graph"] == "0"


def test_a_warm_embedder_records_nothing_more(bundle, m3):
    """After `warm_up` every size has its buffers, and vectors are right."""
    embedder = Embedder.open(bundle.folder)
    embedder.warm_up()
    (device,) = embedder.session._on_devices
    sizes = set(device._recordings)
    assert len(sizes) == len(warm_up_batches(embedder.bundle))
    for count in (1, 3, 7):
        found = embedder.embed_token_ids(texts()[:count]).dense
        np.testing.assert_allclose(found, m3.embed_token_ids(texts()[:count]).dense, atol=1e-6)
    assert set(device._recordings) == sizes
    m3.warm_up()


def test_every_device_is_warmed(several, monkeypatch):
    """Each process runs every size, not those that come its way."""
    ran = []
    monkeypatch.setattr(DeviceProcess, "run", lambda self, batch, _: ran.append((self.device, len(batch.input_ids))))
    several.warm_up()
    assert sorted(ran) == sorted((device, len(batch.input_ids)) for device in (0, 1) for batch in sizes(several))


@pytest.mark.parametrize("max_tokens", [8, 100, 128, 512, 8192])
def test_every_size_that_can_come_is_warmed(bundle, max_tokens):
    """Of models for short texts too: each batch that is replayed has a size that `warm_up` has recorded."""
    short = dataclasses.replace(bundle, max_tokens=max_tokens)
    warmed = {replay_size(batch) for batch in warm_up_batches(short)}
    assert None not in warmed
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.integers(1, max_tokens + 1, rng.integers(1, 33)) // rng.integers(1, 9)
        lengths = lengths[lengths > 0]
        (found,) = {replay_size(packed(lengths))}
        assert found is None or found in warmed
    assert all(batch.lengths.max() <= max_tokens for batch in warm_up_batches(short))


def packed(lengths):
    lengths = lengths if len(lengths) else np.array([1])
    return Batch(rows=np.arange(len(lengths)), input_ids=np.zeros(lengths.sum(), dtype=np.int64), lengths=lengths)


def test_float32_is_not_filled_up(bundle):
    """What is not recorded is launched as it is: a batch that is filled up would cost more for nothing."""
    plain = dataclasses.replace(bundle, target="cuda-fp32")
    assert not records(plain)
    assert len(warm_up_batches(plain)) == 1
    embedder = Embedder.open(bundle.folder)
    session = dataclasses.replace(embedder.session, bundle=plain)
    dataclasses.replace(embedder, bundle=plain, session=session).embed_token_ids(texts()[:3])
    (device,) = session._on_devices
    assert not device._recordings


def test_two_warm_up_at_once(several):
    """Two threads that each want all devices do not wait for each other."""
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(several.warm_up) for _ in range(2)]:
            done.result(timeout=120)


def test_processes_take_no_module_of_the_working_directory(bundle, tmp_path, monkeypatch):
    """A file named like one of our modules, where a user works, is not executed."""
    for name in ("tokenizers", "numpy", "pickle", "bge_onnx"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w'); raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.chdir(tmp_path)
    assert len(on_devices(bundle, 0, 1).embed_token_ids(texts()[:4]).dense) == 4
    assert not (tmp_path / "executed").exists()


def test_processes_run_the_bundle_that_was_opened(bundle, tmp_path):
    """Another bundle that took its place in the meantime is an error in every process."""
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    embedder = on_devices(Embedder.open(copy).bundle, 0, 1)
    copy.rename(tmp_path / "old")
    shutil.copytree(bundle.folder, copy)
    with pytest.raises(BundleError, match="expected the bundle that was opened"):
        embedder.embed_token_ids(texts()[:4])


def sizes(embedder):
    return warm_up_batches(embedder.bundle)


def test_what_libraries_print_is_no_answer(bundle, tmp_path):
    """A library that writes to the process's stdout from C, as ONNX Runtime does, writes to its stderr."""
    program = tmp_path / "loud.py"
    program.write_text(
        "import os, sys\n"
        "from bge_onnx.run import device_process\n"
        "run = device_process.Session.run\n"
        "def loud(*given):\n"
        "    os.write(1, b'SdpaKernel=MATH')\n"
        "    return run(*given)\n"
        "device_process.Session.run = loud\n"
        "device_process.serve(*sys.argv[1:])\n"
    )
    (batch,) = plan_batches([np.arange(5, 20)], layout="packed", pad_id=1)
    command = [sys.executable, str(program), "0", "0"]
    given = pickle.dumps(bundle) + pickle.dumps((batch, ("dense",)))
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    ((_, outputs),) = pickle.loads(done.stdout)
    assert outputs["dense"].shape == (1, 32)
    assert b"SdpaKernel=MATH" in done.stderr


def test_kernels_are_counted_by_node():
    """ONNX Runtime's lines, a run after another, give each kernel's number of nodes."""
    said = (
        "\x1b[36mOperator=PackedMultiHeadAttention Node=layer.0 DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n" * 2
        + "\x1b[36mOperator=PackedMultiHeadAttention Node=layer.1 DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
        + "Operator=PackedMultiHeadAttention Node=layer.1 DataType=fp16 SdpaKernel=EFFICIENT_ATTENTION\n"
        + "something else\n"
    )
    assert kernels_of(said) == {"FLASH_ATTENTION": 2, "EFFICIENT_ATTENTION": 1}


def test_kernels_of_a_bundle_that_does_not_run_are_an_error(m3_checkpoint, tmp_path):
    """Without a GPU the reason is said, and no kernel made up."""
    options = Options(pooling="cls")
    request = Request(model="m3", target="cuda-fp16", checkpoint=m3_checkpoint, options=options, check=False)
    with pytest.raises(ProviderError, match="is lowered for CUDAExecutionProvider"):
        attention_kernels(export(request, tmp_path / "bundle").folder)
