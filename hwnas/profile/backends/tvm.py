"""Apache TVM: ONNX through Relax, for the processor (LLVM) and NVIDIA GPUs (CUDA); here, or on a board over TVM's RPC.

An untuned kernel is the plain loops of its definition, on a processor some ten times slower than ONNX Runtime's; with
`trials` MetaSchedule looks for schedules first (see `tvm_tuning`). Found on MobileNetV3 blocks, and done here:

- Without `mcpu` LLVM compiles for the oldest processor of the architecture (SSE2 on x86-64), which tuned loops feel.
- MetaSchedule lays weights out anew for its loops, and times kernels as if that were done; left in the network it is
  done in every inference. Weights are constants here, so it is split off and folded.
- What is tuned has to be what is built: the same fused kernels, legalised by the same passes under the same target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hwnas.profile.backends.base import Backend, Settings, backends
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Stopwatch, clocked, random_inputs

NS_PER_S = 1e9
MAIN = "main"
INVOKE = "invoke_stateful"
FLOAT = 1
CRASHES = "0.1.15"


@dataclass
class Loaded:
    """A virtual machine with its inputs in place."""

    machine: Any
    inputs: list[Any]


@backends.register("tvm")
class Tvm(Backend):
    distributions = ("apache-tvm",)
    devices = ("cpu", "gpu")
    can_tune = True
    can_remote = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        os.environ.update(TVM_NUM_THREADS=str(settings.threads), TVM_BIND_THREADS="0")
        import tvm

        self.board = self._request() if settings.remote else None
        place = self.board.session if self.board else tvm
        self.device = place.cuda() if settings.device == "gpu" else place.cpu()
        self.target = self.board.target if self.board else host_target(settings)

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        found = cls.installed("apache-tvm-ffi")
        if settings.trials and found.startswith(CRASHES):
            return f"apache-tvm-ffi {found} crashes while it tunes; install apache-tvm-ffi==0.1.14.post1"
        return super().unavailable(settings)

    def _request(self) -> Any:
        from hwnas.profile import tvm_board

        try:
            return tvm_board.Board(self.settings)
        except tvm_board.BoardError as error:
            raise SystemExit(str(error)) from error

    def compile(self, subject: Subject) -> Loaded:
        import onnx
        import tvm
        from tvm import relax

        model = onnx.load_from_string(subject.to_onnx(self.settings.batch))
        module = fused(model, self.target)
        with self.target, tvm.transform.PassContext(opt_level=3):
            module = self._scheduled(module)
            executable = relax.build(module, target=self.target, relax_pipeline="default_build")
        machine = relax.VirtualMachine(self.board.load(executable) if self.board else executable, self.device)
        inputs = [tvm.runtime.tensor(array, self.device) for array in random_inputs(_shapes(model, self.settings))]
        machine.set_input(MAIN, *inputs)
        return Loaded(machine, inputs)

    def _scheduled(self, module: Any) -> Any:
        """The fused kernels of `module` with tuned schedules where they are asked for, on a GPU with default ones."""
        from tvm import relax

        if self.settings.trials:
            from hwnas.profile import tvm_tuning

            measure = self.board.measure if self.board else tvm_tuning.here(self.target, str(self.device))
            with tvm_tuning.records(module, self.target, self.settings, measure, self.alive):
                module = relax.transform.MetaScheduleApplyDatabase()(module)
            module = relax.transform.FoldConstant()(relax.transform.SplitLayoutRewritePreproc()(module))
        if self.settings.device == "gpu":
            from tvm.s_tir import dlight

            rules = (
                dlight.gpu.Matmul,
                dlight.gpu.GEMV,
                dlight.gpu.Reduction,
                dlight.gpu.GeneralReduction,
                dlight.gpu.Fallback,
            )
            module = dlight.ApplyDefaultSchedule(*(rule() for rule in rules))(module)
        return module

    def run(self, model: Loaded) -> Sequence[Any]:
        model.machine.invoke_stateful(MAIN)
        here = self.board is None and self.settings.device == "cpu"
        if not here:
            self.device.sync()
        outputs = model.machine.get_outputs(MAIN)
        several = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [np.from_dlpack(output) if here else output.numpy() for output in several]

    def repeat(self, model: Loaded, times: int) -> int:
        """On the device alone: neither calls nor outputs pass the network between a board's inferences.

        TVM's evaluator makes one inference before those that it counts.
        """
        if self.board is not None:
            model.machine.time_evaluator(INVOKE, self.device, number=times)(MAIN)
            return times + 1
        for _ in range(times):
            model.machine.invoke_stateful(MAIN)
        self.device.sync()
        return times

    def close(self, model: Loaded) -> None:
        model.machine = None
        model.inputs.clear()

    def stopwatch(self, model: Loaded) -> Stopwatch:
        """On the processor of this machine by its clock; else by that of the device, with TVM's evaluator."""
        if self.board is None and self.settings.device == "cpu":
            return clocked(partial(model.machine.invoke_stateful, MAIN))
        evaluator = model.machine.time_evaluator(INVOKE, self.device, number=1)
        return lambda: int(evaluator(MAIN).mean * NS_PER_S)

    def conditions(self) -> dict[str, Any]:
        return {} if self.board else super().conditions()

    def lost(self) -> bool:
        return self.board is not None and bool(self.board.lost())

    def about(self) -> dict[str, Any]:
        if self.board is None:
            return {"compiled_for": str(self.target)}
        return {"compiled_for": str(self.target), "board": self.board.name(), "tracker": self.settings.remote}

    def sentinel(self) -> Stopwatch:
        return self.board.sentinel() if self.board else super().sentinel()

    @classmethod
    def here(cls, settings: Settings) -> bool:
        return settings.device == "cpu" and not settings.remote


def host_target(settings: Settings) -> Any:
    """The target of this machine, with all that its processor can do."""
    import tvm
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_system_cpu

    if settings.device == "gpu":
        return Target.from_device(tvm.cuda())
    return Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": settings.threads})


def fused(model: Any, target: Any) -> Any:
    """An ONNX model as fused kernels and the calls of them: what is tuned, and what is built."""
    import tvm
    from tvm.relax import transform
    from tvm.relax.frontend.onnx import from_onnx

    passes = [
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.AttachAttrLayoutFreeBuffers(),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(from_onnx(model))


def _shapes(model: Any, settings: Settings) -> list[tuple[int, ...]]:
    """The shapes of an ONNX model's inputs, an open first axis being the batch."""
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = []
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type != FLOAT:
            raise ValueError(f"input {value.name!r} is not of 32-bit floats; only these can be fed")
        batch, *rest = [side.dim_value for side in tensor.shape.dim]
        if not all(rest):
            raise ValueError(f"input {value.name!r} has an open side; give it fixed sides")
        shapes.append((batch or settings.batch, *rest))
    return shapes
