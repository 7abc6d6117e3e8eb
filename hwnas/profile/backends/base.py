"""`Backend`: a runtime that can be measured. One class, three methods: compile, run, close.

    @backends.register("my-runtime")
    class MyRuntime(Backend):
        distributions = ("my-runtime",)

        def compile(self, subject): return my_runtime.load(subject.to_onnx(self.settings.batch))
        def run(self, model): return model()
        def close(self, model): model.unload()

A package of its own registers it through the entry-point group `hwnas.backends`. Backends are made and used inside a
worker process only; asking for availability and version imports no runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from hwnas.core.registry import Registry
from hwnas.core.target import CACHES
from hwnas.profile import nvidia
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Stopwatch, clocked, matrix_sentinel, no_sentinel

TRIALS = 32
"""Schedules to try for a kernel that no record is known of, where a tuned target is measured again."""


@dataclass(frozen=True)
class Settings:
    """How a runtime is to run.

    Attributes:
        device: `cpu` or `gpu`.
        batch: images in one inference; threads: processor threads of one.
        cache: `warm`, or `cold` where the device's cache is flushed before every timed run.
        graphs: whether the kernels of an inference are recorded once and replayed as a CUDA graph.
        trials: schedules to measure for each kernel before it is used; 0: kernels as the runtime has them.
        records: folder that keeps what these trials found.
        remote: `HOST:PORT` of the RPC tracker whose boards are measured; empty: this machine.
        key: the boards' name at the tracker.
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    cache: str = "warm"
    graphs: bool = False
    trials: int = 0
    records: str = ""
    remote: str = ""
    key: str = ""


class Backend(ABC):
    """A runtime under `settings`. `compile` may raise anything: its subject is then marked failed with the reason."""

    distributions: ClassVar[tuple[str, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    tuned: ClassVar[bool] = False
    caches: ClassVar[tuple[str, ...]] = ("warm",)
    can_graph: ClassVar[bool] = False
    can_tune: ClassVar[bool] = False
    reads_onnx: ClassVar[bool] = True
    can_remote: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.alive: Callable[[], None] = lambda: None
        """To be called now and then by a `compile` that takes minutes, so that it does not count as hung."""

    @classmethod
    def version(cls) -> str:
        """The installed version of the runtime; empty where it is absent."""
        return next(filter(None, map(cls.installed, cls.distributions)), "")

    @staticmethod
    def installed(distribution: str) -> str:
        """The version of a distribution; empty where it is absent."""
        try:
            return version(distribution)
        except PackageNotFoundError:
            return ""

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        """Why this machine cannot measure with these settings, in words that end a sentence; None where it can."""
        if not cls.version():
            absent = f"{' or '.join(cls.distributions)} is not installed"
            return absent if cls.distributions else "it names no `distributions` to tell its version by"
        if settings.device not in cls.devices:
            return f"it runs on {', '.join(cls.devices)}, not on {settings.device}"
        if settings.precision not in cls.precisions:
            return f"it runs in {', '.join(cls.precisions)}, not in {settings.precision}"
        on_gpu = settings.device == "gpu"
        if settings.cache not in CACHES:
            return f"a cache is {' or '.join(CACHES)}, not {settings.cache}"
        if settings.cache not in (cls.caches if on_gpu else ("warm",)):
            able = those_that(lambda backend: settings.cache in backend.caches)
            return f"{settings.cache} caches are measured by {able} on gpu only; leave --cache away"
        if settings.graphs and not (cls.can_graph and on_gpu):
            able = those_that(lambda backend: backend.can_graph)
            return f"CUDA graphs are replayed by {able} on gpu only; leave --graphs away"
        if settings.trials and not cls.can_tune:
            able = those_that(lambda backend: backend.can_tune)
            return f"its kernels are not tuned; leave --trials away, or use --runtime {able}"
        if settings.remote and not cls.can_remote:
            able = those_that(lambda backend: backend.can_remote)
            return f"it measures this machine only; boards at a tracker are measured with --runtime {able}"
        return None

    @classmethod
    def here(cls, settings: Settings) -> bool:
        """Whether the sentinel is the common one, on this machine's processor, so that its speed can be remembered."""
        return settings.device == "cpu" and cls.sentinel is Backend.sentinel

    @abstractmethod
    def compile(self, subject: Subject) -> Any:
        """Load `subject` with its inputs in place; the result is handed to `run` and `close`."""

    @abstractmethod
    def run(self, model: Any) -> Sequence[Any]:
        """One inference, ended when it returns; gives the outputs where they lie, on the device or here."""

    def repeat(self, model: Any, times: int) -> int:
        """So many inferences one after the other, or some more, the last of them ended; returns how many they were.

        The energy of an inference is read from these. Overridden where `run` does more than that.
        """
        for _ in range(times):
            self.run(model)
        return times

    @abstractmethod
    def close(self, model: Any) -> None:
        """Free what `compile` made."""

    def lost(self) -> bool:
        """Whether the device no longer answers, so that an error is not the subject's."""
        return False

    def about(self) -> dict[str, Any]:
        """What is recorded of the device beside the circumstances here."""
        return {}

    def stopwatch(self, model: Any) -> Stopwatch:
        """Time one `run`, less what it waited for a processor; overridden where the device keeps its own time."""
        return clocked(partial(self.run, model))

    def conditions(self) -> dict[str, Any]:
        """The device's clocks, power and temperature now, empty where it tells none.

        A key `throttled`, the reason in words, says that the clock is held down: a sample block with it is dropped.
        """
        return nvidia.conditions() if self.settings.device == "gpu" and not self.settings.remote else {}

    def memory_mib(self, model: Any) -> float | None:
        """The most memory that one run took beside weights and inputs, counted by the device; None where it is not."""
        return None

    def sentinel(self) -> Stopwatch:
        """A fixed piece of work on the same device, whose time tells how fast it runs now; 0 where there is none."""
        return matrix_sentinel() if self.settings.device == "cpu" else no_sentinel


backends: Registry[type[Backend]] = Registry(
    "backend", tuple(f"hwnas.profile.backends.{module}" for module in ("onnxruntime", "torch", "tvm"))
)


def those_that(can: Callable[[type[Backend]], bool]) -> str:
    """The names of the registered backends that `can`, as a message says them."""
    return " or ".join(name for name in backends if can(backends.get(name))) or "none"
