"""Neural models: trained in PyTorch, evaluated in numpy, so that a saved one predicts without PyTorch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError
from hwnas.core.threads import torch_threads
from hwnas.predict.base import Arrays, Predictor, predictors
from hwnas.predict.features import CHUNK, block_sequence, configuration
from hwnas.spaces.base import with_nothing

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]

BATCH = 64
WEIGHT_DECAY = 1e-3
LSTM_CHUNK = 4096
LOSSES = {"l2": "mse_loss", "l1": "smooth_l1_loss"}


class _Neural(Predictor):
    """What the networks share: standardised inputs and target, and the training loop."""

    steps: int
    rate: float
    loss: str
    seed: int

    @abstractmethod
    def _module(self, inputs: int) -> nn.Module: ...

    @abstractmethod
    def _inputs(self, genotypes: Population) -> Floats: ...

    @abstractmethod
    def _forward_pass(self, inputs: Floats) -> Floats: ...

    def _fit(self, genotypes: Population, target: Array) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}, expected one of {', '.join(LOSSES)}")
        raw = self._inputs(genotypes)
        flat = raw.reshape(-1, raw.shape[-1])
        self.mean, self.spread = flat.mean(axis=0), flat.std(axis=0)
        self.spread[self.spread <= 1e-6 * np.abs(flat).max(axis=0)] = np.inf
        self.centre = np.array([target.mean(), target.std()])
        self.weights = self._train((raw - self.mean) / self.spread, (target - self.centre[0]) / self.centre[1])

    def _train(self, inputs: Floats, target: Array) -> dict[str, Floats]:
        import torch

        # Small networks train no faster on several threads, and many times slower where the processor is shared.
        with torch.random.fork_rng(devices=[]), torch_threads(1):
            torch.manual_seed(self.seed)
            module = self._module(inputs.shape[-1])
            x, y = torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(target.astype(np.float32))
            optimiser = torch.optim.AdamW(module.parameters(), self.rate, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=self.steps)
            error: Callable[[Tensor, Tensor], Tensor] = getattr(torch.nn.functional, LOSSES[self.loss])
            order = torch.randperm(len(y))
            for step in range(self.steps):
                start = step * BATCH % len(y)
                rows = order[start : start + BATCH]
                optimiser.zero_grad()
                error(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                if start + BATCH >= len(y):
                    order = torch.randperm(len(y))
        return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}

    def _predict(self, genotypes: Population) -> Array:
        chunk = CHUNK if self._inputs(genotypes[:1]).ndim == 2 else LSTM_CHUNK
        parts = [self._predict_part(genotypes[i : i + chunk]) for i in range(0, len(genotypes), chunk)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _predict_part(self, genotypes: Population) -> Array:
        output = self._forward_pass(((self._inputs(genotypes) - self.mean) / self.spread).astype(np.float32))
        result: Array = output.astype(np.float64) * self.centre[1] + self.centre[0]
        return result

    def _state(self) -> Arrays:
        scaling = {"mean": self.mean, "spread": self.spread, "centre": self.centre}
        return {**scaling, **{f"weights.{name}": array for name, array in self.weights.items()}}

    def _restore(self, state: Arrays) -> None:
        self.mean, self.spread, self.centre = state["mean"], state["spread"], state["centre"]
        self.weights = {
            name.removeprefix("weights."): array for name, array in state.items() if name.startswith("weights.")
        }


@predictors.register("mlp")
class Mlp(_Neural):
    """Perceptron with two hidden layers and a linear path beside them.

    Its input is the cost of each slot's block, zero where nothing runs; without a cost table, each slot's
    configuration.
    """

    def configure(
        self, hidden: int = 64, steps: int = 2500, rate: float = 5e-3, loss: str = "l2", seed: int = 0
    ) -> None:
        self.hidden, self.steps, self.rate, self.loss, self.seed = hidden, steps, rate, loss, seed
        self._kept: NDArray[np.int64] | None = None

    def _fit(self, genotypes: Population, target: Array) -> None:
        self._kept = None
        raw = self._inputs(genotypes)
        _, first = np.unique(raw, axis=1, return_index=True)
        self._kept = np.array(sorted(c for c in first if np.ptp(raw[:, c]) > 0), dtype=np.int64)
        super()._fit(genotypes, target)

    def _inputs(self, genotypes: Population) -> Floats:
        if self.costs is not None:
            self.block_sum(genotypes)
        features = configuration(self.space) if self.costs is None else self.costs[:, None]
        inputs: Floats = with_nothing(features.astype(np.float32))[self.space.blocks(genotypes)]
        inputs = inputs.reshape(len(genotypes), len(self.space.slots) * features.shape[1])
        return inputs if self._kept is None else inputs[:, self._kept]

    def _module(self, inputs: int) -> nn.Module:
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, hidden: int) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
                self.last, self.path = nn.Linear(hidden, 1), nn.Linear(inputs, 1, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                deep = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
                result: Tensor = (deep + self.path(x)).squeeze(1)
                return result

        return Net(self.hidden)

    def _forward_pass(self, inputs: Floats) -> Floats:
        w = self.weights
        h = np.maximum(inputs @ w["first.weight"].T + w["first.bias"], 0)
        h = np.maximum(h @ w["second.weight"].T + w["second.bias"], 0)
        result: Floats = (h @ w["last.weight"].T + w["last.bias"] + inputs @ w["path.weight"].T)[:, 0]
        return result

    def _state(self) -> Arrays:
        assert self._kept is not None
        return {**super()._state(), "kept": self._kept}

    def _restore(self, state: Arrays) -> None:
        super()._restore(state)
        self._kept = state["kept"]


@predictors.register("lstm")
class Lstm(_Neural):
    """One step a block: its configuration, and its cost where a table is given.

    The prediction is a linear function of the states' sum over the blocks and the last state (after BRP-NAS's
    observation that per-block contributions add up).
    """

    def configure(
        self, hidden: int = 48, steps: int = 400, rate: float = 1e-2, loss: str = "l2", seed: int = 0
    ) -> None:
        self.hidden, self.steps, self.rate, self.loss, self.seed = hidden, steps, rate, loss, seed

    def _inputs(self, genotypes: Population) -> Floats:
        if self.costs is not None:
            self.block_sum(genotypes)
        return block_sequence(self.space, self.costs, genotypes)

    def _module(self, inputs: int) -> nn.Module:
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, hidden: int) -> None:
                super().__init__()
                self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
                self.step, self.last = nn.Linear(hidden + inputs, 1), nn.Linear(hidden, 1)

            def forward(self, x: Tensor) -> Tensor:
                states = self.lstm(x)[0]
                steps = self.step(torch.cat([states, x], dim=2)).squeeze(2).mean(dim=1)
                result: Tensor = (steps + self.last(states[:, -1]).squeeze(1)).reshape(-1)
                return result

        return Net(self.hidden)

    def _forward_pass(self, inputs: Floats) -> Floats:
        w = self.weights
        recurrent, bias = w["lstm.weight_hh_l0"].T, w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
        driven = inputs @ w["lstm.weight_ih_l0"].T + bias
        h = c = np.zeros((len(inputs), self.hidden), dtype=np.float32)
        total = np.zeros_like(h)
        for step in range(inputs.shape[1]):
            i, f, g, o = np.split(driven[:, step] + h @ recurrent, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            total = total + h
        mean = np.concatenate([total / inputs.shape[1], inputs.mean(axis=1)], axis=1)
        result: Floats = (mean @ w["step.weight"].T + w["step.bias"] + h @ w["last.weight"].T + w["last.bias"])[:, 0]
        return result


def _sigmoid(x: Floats) -> Floats:
    result: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return result
