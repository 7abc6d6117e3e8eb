"""PyTorch, eager (`torch`) and compiled by Inductor (`torch-compile`), on the processor and on CUDA devices."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from hwnas.profile.backends.base import Backend, Settings, backends
from hwnas.profile.backends.cuda import TorchDriver, matrix_product, stopwatch
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Stopwatch, random_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
COMPILERS = ("c++", "g++", "clang++", "cl")
NO_LIMIT = 1 << 20
BEAT_S = 10.0
LONGEST_COMPILE_S = 900.0


@contextmanager
def beating(alive: Callable[[], None], longest_s: float = LONGEST_COMPILE_S) -> Iterator[None]:
    """Call `alive` every few seconds while the block runs, for `longest_s` at most: what takes longer does hang."""
    ended = threading.Event()

    def beat() -> None:
        for _ in range(int(longest_s / BEAT_S)):
            if ended.wait(BEAT_S):
                return
            alive()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class Loaded:
    """A module with its inputs; `call` queues one inference and returns the output."""

    call: Callable[[], Tensor] | None


@backends.register("torch")
class Torch(Backend):
    distributions = ("torch",)
    devices = ("cpu", "gpu")
    precisions = tuple(DTYPES)
    caches = ("warm", "cold")
    can_graph = True
    reads_onnx = False

    def __init__(self, settings: Settings) -> None:
        import torch

        super().__init__(settings)
        torch.set_num_threads(settings.threads)
        self.driver = TorchDriver() if settings.device == "gpu" else None

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason is None and settings.device == "gpu" and cls.version().endswith("+cpu"):
            return "the installed PyTorch is built without CUDA; install one that is built with it"
        return reason

    def compile(self, subject: Subject) -> Loaded:
        import torch

        place: dict[str, Any] = {
            "device": "cuda" if self.driver else "cpu",
            "dtype": getattr(torch, DTYPES[self.settings.precision]),
        }
        module = self._prepared(subject.build().eval().requires_grad_(False).to(**place))
        arrays = random_inputs(subject.input_shapes(self.settings.batch))
        inputs = [torch.from_numpy(array).to(**place) for array in arrays]

        def call() -> Tensor:
            output: Tensor = module(*inputs)
            return output

        if self.driver and self.settings.graphs:
            return Loaded(self.driver.capture(call))
        return Loaded(call)

    def _prepared(self, module: nn.Module) -> Callable[..., Any]:
        return module

    def run(self, model: Loaded) -> Sequence[Tensor]:
        assert model.call is not None
        output = model.call()
        if self.driver:
            self.driver.cuda.synchronize()
        return [output]

    def repeat(self, model: Loaded, times: int) -> int:
        assert model.call is not None
        for _ in range(times):
            model.call()
        if self.driver:
            self.driver.cuda.synchronize()
        return times

    def close(self, model: Loaded) -> None:
        model.call = None

    def stopwatch(self, model: Loaded) -> Stopwatch:
        assert model.call is not None
        if self.driver is None:
            return super().stopwatch(model)
        return stopwatch(self.driver, model.call, self.settings.cache == "cold", self.settings.graphs)

    def lost(self) -> bool:
        """Whether an error of CUDA has spoilt this process, as an illegal access to memory does."""
        try:
            if self.driver:
                self.driver.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    @classmethod
    def here(cls, settings: Settings) -> bool:
        return settings.device == "cpu"

    def sentinel(self) -> Stopwatch:
        return matrix_product(self.driver) if self.driver else super().sentinel()

    def memory_mib(self, model: Loaded) -> float | None:
        """What PyTorch's CUDA allocator held at most beyond what it held before; None on the processor."""
        if self.driver is None or self.settings.graphs:
            return None
        cuda = self.driver.cuda
        cuda.synchronize()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        self.run(model)
        return float(cuda.max_memory_allocated() - before) / 2**20


@backends.register("torch-compile")
class TorchCompile(Torch):
    """Every subject is compiled for its own shapes; the compiler works in the measuring process alone."""

    loaded: ClassVar[int] = 0

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason is None and settings.device == "cpu" and not any(map(shutil.which, COMPILERS)):
            return "torch.compile needs a C++ compiler, such as g++, and finds none"
        if reason is None and settings.device == "gpu" and find_spec("triton") is None:
            return "torch.compile needs triton on a GPU, which is not installed"
        return reason

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        # Blocks share one forward function, and beyond its limit of recompilations PyTorch would run them eagerly.
        dynamo.cache_size_limit = dynamo.accumulated_cache_size_limit = NO_LIMIT  # as PyTorch called it until 2.6, too
        inductor.compile_threads = 1

    def compile(self, subject: Subject) -> Loaded:
        with beating(self.alive):
            model = super().compile(subject)
            self.run(model)
        TorchCompile.loaded += 1
        return model

    def _prepared(self, module: nn.Module) -> Callable[..., Any]:
        import torch

        return torch.compile(module, fullgraph=True, dynamic=False)

    def close(self, model: Loaded) -> None:
        """Free the code too once nothing is loaded; to free one subject's would have the others compiled anew."""
        import torch

        super().close(model)
        TorchCompile.loaded -= 1
        if TorchCompile.loaded == 0:
            torch.compiler.reset()
