"""The training loop that every method shares: steps, learning rates, checkpoints.

A step is a function of the weights and of its number alone (see `batches`), so that a run that was killed and resumed
ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.core.documents import NETWORK, SUPERNET, Document
from hwnas.core.errors import InputError
from hwnas.core.files import check_folder, claimed
from hwnas.core.interrupts import held_interrupt
from hwnas.core.progress import Task, progress, say
from hwnas.spaces.modules import channels_last
from hwnas.train import checkpoint
from hwnas.train.batches import Batches
from hwnas.train.config import RunConfig
from hwnas.train.data import DataSet, check_same, describe
from hwnas.train.distributed import Group, pick_device
from hwnas.train.log import Log
from hwnas.train.schedule import cosine

BASE_BATCH = 64
Losses = Iterator[tuple[str, Tensor]]


def never() -> bool:
    return False


class Phase(ABC):
    """One part of a training: `steps` steps under one learning-rate curve, with an optimiser of its own.

    Attributes:
        warmup: steps in which the learning rate rises.
        lr: peak learning rate for 64 images a step.
    """

    name: str
    steps: int
    warmup: int
    lr: float

    def start(self) -> None:  # noqa: B027
        """Called before the first step; it may change the modules of the run and nothing else."""

    @abstractmethod
    def resolution(self, step: int) -> int:
        """Height and width of the images of `step`."""

    @abstractmethod
    def losses(self, step: int, images: Tensor, labels: Tensor) -> Losses:
        """(name, loss) of each network trained in this step; each is differentiated before the next is asked for."""

    def stepped(self, step: int) -> dict[str, float]:
        """Called after the update of the weights in `step`; what it returns is logged beside the losses."""
        return {}

    def finish(self) -> dict[str, float]:
        """Called after the last step; what it returns is logged. It may change the modules of the run."""
        return {}


@dataclass
class Run:
    """A training in a folder.

    Attributes:
        document: what its checkpoint is.
        saved: the step of the last checkpoint, 0 where there is none.
        about: what that file says beside the step.
        model: what is trained.
        others: further modules on which the course depends (a teacher, an average), by name.
        interrupted: whether it is to end after the step under way.
    """

    folder: Path
    document: Document
    config: RunConfig
    batches: Batches
    model: nn.Module
    about: dict[str, Any]
    device: torch.device
    group: Group = field(default_factory=Group)
    others: dict[str, nn.Module] = field(default_factory=dict)
    saved: int = 0
    interrupted: Callable[[], bool] = never

    @classmethod
    def begin(
        cls, folder: str | Path, document: Document, config: RunConfig, data: DataSet, model: nn.Module, **about: Any
    ) -> Run:
        """A training of `model`, which moves to the device of `config`, by this process and those beside it."""
        device = pick_device(config.device)
        channels_last(model.to(device))
        group = Group.from_environment(device)
        batches = Batches(data, config.batch, config.seed, device, group.rank, group.world)
        described = {**checkpoint.provenance(config), "data_set": describe(data), **about}
        return cls(Path(folder), document, config, batches, model, described, device, group)

    def fit(self, phases: list[Phase], resume: bool = True) -> None:
        """Run the phases from the last checkpoint on, or from the start where there is none or not `resume`.

        Raises `InputError` where a loss is not finite, naming step and network; the last checkpoint stays. Also where
        another process trains in the folder. An interrupt leaves a checkpoint of the step that was under way, of
        several processes the last one that was due.
        """
        _own_folder(self.folder, self.document)
        claim = claimed(self.folder) if self.group.rank == 0 else nullcontext()
        with claim, held_interrupt() if self.group.world == 1 else nullcontext(never) as self.interrupted:
            self._fit(phases, resume)

    def _fit(self, phases: list[Phase], resume: bool) -> None:
        total = sum(phase.steps for phase in phases)
        done, momentum = self._restore() if resume else (0, {})
        if phases and done == total:
            say(f"the training in {self.folder} is finished; another --out would train anew")
        log = Log(self.folder, done, self.config.tensorboard and self.group.rank == 0, self.group.rank == 0)
        with progress("training", total) as task, log:
            task.resume(done)
            end = 0
            for phase in phases:
                start, end = end, end + phase.steps
                if done < end:
                    self._phase(phase, range(max(done, start), end), start, momentum, task, log)
                    momentum = {}
                    self._save(end, None, finished=end == total)
                    self.group.wait()
                if self.interrupted():
                    return
        if not phases and not done:
            self._save(0, None, finished=True)

    def _phase(self, phase: Phase, steps: range, start: int, momentum: dict[str, Tensor], task: Task, log: Log) -> None:
        optimizer = self._optimizer(momentum)
        scale = phase.lr * self.batches.batch * self.group.world / BASE_BATCH
        if steps.start == start:
            phase.start()
        saved = time.monotonic()
        self.model.train()
        for step in steps:
            lr = cosine(step - start, phase.steps, phase.warmup, scale)
            losses = self._step(phase, step, optimizer, lr)
            more = phase.stepped(step)
            mean = sum(losses.values()) / len(losses)
            task.update(step + 1, f"{phase.name}, loss {mean:.3f}")
            log.step(step, phase.name, lr, {**losses, **more})
            stop = self.interrupted()
            if (stop or time.monotonic() - saved >= self.config.checkpoint_s) and step + 1 < steps.stop:
                self._save(step + 1, optimizer)
                saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt
        self.group.share_buffers(self.model)
        log.report(steps.stop, phase.name, phase.finish())

    def _step(self, phase: Phase, step: int, optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        images, labels = self.batches.at(step, phase.resolution(step))
        losses: dict[str, Tensor] = {}
        pending = phase.losses(step, images, labels)
        while True:
            with self.precision():
                name, loss = next(pending, ("", None))
            if loss is None:
                break
            loss.backward()  # type: ignore[no-untyped-call]
            losses[name] = loss.detach()
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        self.check_finite(values, step, f"{phase.name}, learning rate {lr:.4g}")
        self.group.average_gradients(self.model)
        optimizer.step()
        return values

    def precision(self) -> torch.autocast:
        """The context in which networks are run forward."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def check_finite(self, losses: dict[str, float], step: int, about: str) -> None:
        """Raise `InputError` that names the first loss which is not finite, and says how to go on."""
        for name, value in losses.items():
            if not math.isfinite(value):
                again = (
                    f"lower learning_rate and run the same command again, it goes on from the checkpoint of step "
                    f"{self.saved} in {self.folder}"
                    if 0 < self.saved < step
                    else "start again with a lower learning_rate and another --out"
                )
                raise InputError(f"the loss of {name} is {value} at step {step} ({about}): {again}")

    def _optimizer(self, momentum: dict[str, Tensor]) -> torch.optim.SGD:
        """SGD with Nesterov's momentum, no weight decay on BatchNorm and bias."""
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        free = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=self.config.momentum, nesterov=self.config.momentum > 0, foreach=True
        )
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter).copy_(momentum[name])  # in the parameter's order of memory
                optimizer.state[parameter]["momentum_buffer"] = buffer
        return optimizer

    def _save(self, step: int, optimizer: torch.optim.SGD | None, finished: bool = False) -> None:
        """Write the checkpoint before `step`; without an optimiser the next step starts one afresh.

        The first process does; the others do not wait for it, since each would find by its own clock when that is due.
        """
        if self.group.rank == 0:
            others = {} if finished else self.others
            course = {f"{name}.{key}": t for name, m in others.items() for key, t in m.state_dict().items()}
            if optimizer is not None:
                for name, parameter in self.model.named_parameters():
                    if "momentum_buffer" in optimizer.state[parameter]:
                        course[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
            groups = {"weights": self.model.state_dict(), "course": course}
            checkpoint.save(self.folder, self.document, step, groups, {**self.about, "finished": finished})
            self.saved = step

    def _restore(self) -> tuple[int, dict[str, Tensor]]:
        """The step to go on from and the optimiser's momentum; weights are put in place."""
        if not (self.folder / self.document.file).exists():
            if any(self.folder.glob("weights-*.safetensors")):
                say(f"{self.folder} holds weights, but no {self.document.file} of a whole checkpoint: it starts anew")
            return 0, {}
        about = checkpoint.read(self.folder, self.document)
        _same_run(self.folder, about, self.about)
        check_same(about.get("data_set", {}), self.about["data_set"], self.folder)
        checkpoint.put_weights(self.model, checkpoint.tensors(self.folder, about, "weights"), str(self.folder))
        course = checkpoint.tensors(self.folder, about, "course")
        for name, module in self.others.items():
            own = part(course, name)
            if own:
                checkpoint.put_weights(module, own, str(self.folder))
        self.saved = int(about["step"])
        return self.saved, part(course, "momentum")


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors called `NAME.*`, without that prefix."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _own_folder(folder: Path, document: Document) -> None:
    """Raises `InputError` where `folder` cannot be one, or holds another kind of training, which must not be mixed."""
    check_folder(folder)
    for other in {SUPERNET, NETWORK} - {document}:
        if (folder / other.file).exists():
            raise InputError(f"{folder} holds a {other.what} ({other.file}): choose another --out")


def _same_run(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises `InputError` where the checkpoint in `folder` belongs to another configuration."""
    before, now = (_what_counts(about, described="data_set" in found) for about in (found, asked))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{folder} holds a training with {key} {before.get(key)!r}, asked is {now.get(key)!r}: "
                "choose another --out, or the same configuration to go on with it"
            )


def _what_counts(about: dict[str, Any], described: bool) -> dict[str, Any]:
    """The settings that a resumed run must share; where the images lie is none, where what they are is `described`."""
    free = ("learning_rate", "threads", "checkpoint_s", "tensorboard", "device")
    settings = {**(about.get("config") or {}), **(about.get("costs") or {})}
    if described and isinstance(settings.get("data"), dict):
        settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("path", "test_path")}
    return {key: value for key, value in settings.items() if key not in free}


def fixed_shape(network: nn.Module, compiled: bool) -> Callable[[Tensor], Tensor]:
    """`network` as a function; where `compiled`, one that torch.compile translates at its first call."""
    return torch.compile(network) if compiled else network
