"""One suite for every registered backend: the outputs of PyTorch, the same timing, clean failure, clean-up."""

import ctypes
import gc
import os
import shutil
import sys
import time

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import numpy_helper

from hwnas.core.target import Target
from hwnas.profile import nvidia
from hwnas.profile.backends import Settings, backends
from hwnas.profile.backends.precision import convert
from hwnas.profile.campaign import run_campaign
from hwnas.profile.device import gpus, local_target
from hwnas.profile.history import Effort, History
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
from hwnas.profile.timer import random_inputs
from hwnas.spaces import Primitive, get_space

TOLERANCE = 2e-4
BLOCKS = [
    Primitive.of("conv", (3, 32, 32), act="h_swish", bn=1, kernel=3, out=16, stride=2),
    Primitive.of("linear", (64, 1, 1), out=10),
    *get_space("ofa-mbv3:width=0.5,resolution=64").primitives()[20:80:20],
    *get_space("fbnet:variant=cifar").primitives()[3:9:2],
]
QUICK = Effort(sessions=1, goal=1.0)
SIGNAL_TO_NOISE_DB = {"fp32": 60, "fp16": 50, "bf16": 35, "int8": 20}
SYMMETRIC_INT8_DB = 12
"""Activations that a ReLU leaves above zero keep seven bits of the eight: 14.5 dB on a processor."""
SLOW_TO_COMPILE = ("torch-compile",)


def ready(name: str, settings: Settings | None = None) -> str:
    """`name`, where this machine can measure with it; skips with the reason where it cannot."""
    reason = backends.get(name).unavailable(settings or Settings())
    if reason:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=list(backends))
def name(request):
    if request.param in SLOW_TO_COMPILE and not os.environ.get("HWNAS_TEST_SLOW"):
        pytest.skip(f"{request.param}: compiling takes up to a minute a block (set HWNAS_TEST_SLOW=1)")
    return ready(request.param)


def here(output) -> np.ndarray:
    """An output of any backend, in whatever precision and on whatever device, as float32 on this machine."""
    if hasattr(output, "detach"):
        return output.detach().float().cpu().numpy()
    return np.asarray(output.numpy() if hasattr(output, "data_ptr") else output, dtype=np.float32)


def check_precision(name: str, settings: Settings) -> None:
    """A block in reduced precision is the block in full precision, but for noise of that precision's size."""
    subject = Subject.primitive(BLOCKS[2])
    backend = backends.get(ready(name, settings))(settings)
    model = backend.compile(subject)
    truth = expected(subject, settings.batch)
    noise = here(backend.run(model)[0]) - truth
    backend.close(model)
    ratio = 10 * np.log10((truth**2).sum() / max((noise**2).sum(), 1e-30))
    tensor_cores = {"fp32": 45, "int8": SYMMETRIC_INT8_DB} if settings.device == "gpu" else {}
    assert (SIGNAL_TO_NOISE_DB | tensor_cores)[settings.precision] < ratio
    assert settings.precision == "fp32" or ratio < 110, "it ran in full precision"


def expected(subject: Subject, batch: int) -> np.ndarray:
    import torch

    inputs = [torch.from_numpy(array) for array in random_inputs(subject.input_shapes(batch))]
    with torch.no_grad():
        output = subject.build().eval()(*inputs)
    return output.numpy()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("primitive", BLOCKS, ids=lambda primitive: primitive.key)
def test_outputs_are_those_of_pytorch(name, primitive, batch):
    backend = backends.get(name)(Settings(batch=batch))
    subject = Subject.primitive(primitive)
    model = backend.compile(subject)
    (output,) = backend.run(model)
    truth = expected(subject, batch)
    np.testing.assert_allclose(here(output), truth, rtol=TOLERANCE, atol=TOLERANCE * np.abs(truth).max())
    backend.close(model)


@pytest.mark.parametrize("precision", sorted({p for each in backends for p in backends.get(each).precisions}))
def test_every_precision_computes_the_same_but_for_its_own_noise(name, precision):
    if precision not in backends.get(name).precisions:
        pytest.skip(f"{name} does not run in {precision}")
    check_precision(name, Settings(precision=precision, batch=2))


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    openvino = pytest.importorskip("openvino")
    for capabilities, refused in ((["FP32", "INT8"], True), (["FP32", "BF16", "INT8"], False)):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_, capabilities=capabilities: capabilities)
        reason = backends.get("openvino").unavailable(Settings(precision="bf16"))
        assert ("bfloat16" in reason) if refused else (reason is None)


@pytest.mark.skipif(not any(shutil.which(each) for each in ("c++", "g++", "clang++")), reason="no C++ compiler")
def test_torch_compile_gives_the_outputs_of_pytorch():
    backend = backends.get(ready("torch-compile"))(Settings())
    subject = Subject.primitive(BLOCKS[1])
    model = backend.compile(subject)
    np.testing.assert_allclose(here(backend.run(model)[0]), expected(subject, 1), rtol=1e-4, atol=1e-4)
    assert backend.stopwatch(model)() > 0
    backend.close(model)


def test_int8_for_a_gpu_is_symmetric():
    """TensorRT takes no other; a processor computes the same, so that its noise can be told here."""
    subject = Subject.primitive(BLOCKS[2])
    model = onnx.load_from_string(convert(subject.to_onnx(1), "int8", 1, symmetric=True))
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    zeros = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = random_inputs([value.shape for value in session.get_inputs()])
    feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    truth = expected(subject, 1)
    noise = session.run(None, feeds)[0] - truth
    assert 10 * np.log10((truth**2).sum() / (noise**2).sum()) > SYMMETRIC_INT8_DB


@pytest.mark.gpu
@pytest.mark.parametrize("each", list(backends))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_on_a_gpu(each, precision):
    if precision not in backends.get(each).precisions:
        pytest.skip(f"{each} does not run in {precision}")
    needs_gpu()
    if each == "tvm" and not pytest.importorskip("tvm").runtime.enabled("cuda"):
        pytest.skip("this TVM is built without CUDA")
    check_precision(each, Settings("gpu", precision))


@pytest.mark.gpu
def test_cuda_graphs_and_a_cold_cache_on_a_gpu():
    needs_gpu()
    subject = Subject.primitive(BLOCKS[3])
    for settings in (Settings("gpu"), Settings("gpu", graphs=True), Settings("gpu", graphs=True, cache="cold")):
        backend = backends.get(ready("torch", settings))(settings)
        model = backend.compile(subject)
        np.testing.assert_allclose(here(backend.run(model)[0]), expected(subject, 1), rtol=1e-2, atol=1e-2)
        once = backend.stopwatch(model)
        assert all(once() > 0 for _ in range(20))
        assert backend.memory_mib(model) is None if settings.graphs else backend.memory_mib(model) > 0
        assert not nvidia.available() or backend.conditions().keys() >= {"clock_mhz", "power_w", "temperature_c"}
        backend.close(model)


def needs_gpu() -> None:
    if not gpus():
        pytest.skip("no GPU is found on this machine")


def test_a_network_gives_the_outputs_of_pytorch(name):
    space = get_space("ofa-mbv3:width=0.5,resolution=64")
    subject = Subject.network(space, space.sample(1, 0)[0])
    backend = backends.get(name)(Settings())
    model = backend.compile(subject)
    truth = expected(subject, 1)
    np.testing.assert_allclose(here(backend.run(model)[0]), truth, rtol=1e-3, atol=1e-3 * np.abs(truth).max())
    backend.close(model)


def test_the_stopwatch_times_every_run(name):
    backend = backends.get(name)(Settings())
    model = backend.compile(Subject.primitive(BLOCKS[0]))
    once = backend.stopwatch(model)
    times = [once() for _ in range(5)]
    assert all(isinstance(time, int) and time > 0 for time in times)
    assert backend.sentinel()() > 0
    backend.close(model)


def test_inferences_are_repeated_as_often_as_asked(name):
    backend = backends.get(name)(Settings())
    model = backend.compile(Subject.primitive(BLOCKS[0]))
    truth = here(backend.run(model)[0]).copy()

    def took(times: int) -> float:
        started = time.perf_counter()
        assert backend.repeat(model, times) == times
        return time.perf_counter() - started

    least = min(took(1) for _ in range(5))
    assert took(200) > 20 * least, "two hundred inferences take longer than twenty"
    np.testing.assert_array_equal(here(backend.run(model)[0]), truth)
    backend.close(model)


def test_what_cannot_be_compiled_raises_and_the_next_one_compiles(name):
    backend = backends.get(name)(Settings())
    with pytest.raises(Exception, match=r"\w"):
        backend.compile(Subject("primitive", "1:nonesuch[3x8x8]"))
    model = backend.compile(Subject.primitive(BLOCKS[0]))
    backend.run(model)
    backend.close(model)


def test_closing_frees_the_memory(name):
    space = get_space("ofa-mbv3:width=1.0,resolution=64")
    subject = Subject.network(space, space.sample(1, 0)[0])
    backend = backends.get(name)(Settings())

    def held_after(times: int) -> int:
        """What is held once some models were closed, in bytes, without what the C library keeps for its next call."""
        for _ in range(times):
            model = backend.compile(subject)
            backend.run(model)
            backend.close(model)
            del model
            gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(psutil.Process().memory_info().rss)

    settled = held_after(3)
    assert held_after(12) - settled < 24 * 2**20, "twelve networks of about 16 MiB each left more than one behind"


def test_it_says_what_it_cannot_do(name):
    backend = backends.get(name)
    assert backend.version()
    for settings in (Settings(device="abacus"), Settings(precision="fp3")):
        assert settings.device in backend.unavailable(settings) or settings.precision in backend.unavailable(settings)


def test_a_campaign_measures_with_it(name, tmp_path):
    subjects = [Subject.primitive(primitive) for primitive in BLOCKS[:2]]
    broken = Subject("primitive", "1:nonesuch[3x8x8]")
    target, before = local_target(name, Settings()), psutil.Process().children()
    assert isinstance(target, Target) and target.runtime == name and target.runtime_version
    with Store(tmp_path / "samples.sqlite") as store:
        run_campaign(store, target, Settings(), [*subjects, broken], effort=QUICK)
        found = History(store, target).measurements([*subjects, broken], goal=QUICK.goal)
    for subject in subjects:
        measured = found[subject]
        assert measured.verdict == "steady", measured
        assert 0 < measured.low <= measured.median <= measured.high
    assert found[broken].verdict == "failed" and "nonesuch" in found[broken].reason
    assert set(psutil.Process().children()) <= set(before), "a worker is left behind"
