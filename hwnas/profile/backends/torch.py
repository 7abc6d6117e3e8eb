"""PyTorch, eager, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from hwnas.profile.backends.base import Backend, backends
from hwnas.profile.subject import Subject
from hwnas.profile.timer import random_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Loaded:
    module: nn.Module | None
    inputs: list[Tensor]


@backends.register("torch")
class Torch(Backend):
    distributions = ("torch",)

    def compile(self, subject: Subject) -> Loaded:
        import torch

        torch.set_num_threads(self.settings.threads)
        module = subject.build().eval().requires_grad_(False)
        arrays = random_inputs(subject.input_shapes(self.settings.batch))
        return Loaded(module, [torch.from_numpy(array) for array in arrays])

    def run(self, model: Loaded) -> Sequence[ArrayLike]:
        assert model.module is not None
        output: Tensor = model.module(*model.inputs)
        return [output]

    def close(self, model: Loaded) -> None:
        model.module = None
        model.inputs.clear()
