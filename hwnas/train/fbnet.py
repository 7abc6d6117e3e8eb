"""FBNet (Wu et al., CVPR 2019): choices learnt through a Gumbel-softmax, with a cost in the loss, or a target."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core.errors import InputError
from hwnas.train.batches import Batches
from hwnas.train.config import OneShotConfig
from hwnas.train.loop import Losses, Phase, Run
from hwnas.train.mixed import Gate, MixedNetwork
from hwnas.train.oneshot import AIM, CostTerm, one_shot

LR = 1 / 30
ANNEALED = 0.045 * 90
DAMPING = 3.0
THOUSANDTHS = 1000.0
DUAL = "dual"
OF_WEIGHTS, OF_CHOICES, DRAWN_COSTS = range(3)


@one_shot.register("fbnet")
def fbnet(
    run: Run, network: MixedNetwork, config: OneShotConfig, terms: Sequence[CostTerm], batches: Batches
) -> list[Phase]:
    """One phase. Raises `InputError` where the published loss is not defined for the cost."""
    targets = [term for term in terms if term.bound is not None]
    if not targets and len(terms) != 1:
        raise InputError("fbnet needs a cost: one --cost to keep low, or a target (--max) for each of several")
    updates = max(1.0, config.epochs * (1 - config.weights_first) * batches.steps_per_epoch)
    rate = config.dual_rate / updates
    price = DualAscent(targets, rate) if targets else Published(terms[0], config.alpha, config.beta)
    run.others[DUAL] = price
    return [FbnetPhase(run, network, config, price, batches)]


class Published(nn.Module):
    """The published loss: cross-entropy * alpha * ln(cost in thousandths of its unit)^beta, of the drawn mixture."""

    def __init__(self, term: CostTerm, alpha: float, beta: float) -> None:
        super().__init__()
        self.term, self.alpha, self.beta = term, alpha, beta
        if THOUSANDTHS * term.least <= 1:
            raise InputError(
                f"the published loss takes the logarithm of {term.name} in thousandths of its unit, and the space "
                f"reaches down to {term.least:g}: set a target (--max {term.name}=VALUE) instead"
            )

    def forward(self, loss: Tensor, p: Tensor, mixture: Tensor, rng: np.random.Generator) -> Tensor:
        cost = self.term.cost(mixture, rng)
        return loss * self.alpha * (THOUSANDTHS * cost).log() ** self.beta

    def report(self) -> dict[str, float]:
        return {}


class DualAscent(nn.Module):
    """Cross-entropy plus a multiplier times how far each expected cost is beside its target.

    The multiplier is adapted by dual ascent, as LightNAS does (Luo et al., DAC 2022), with the damping of an augmented
    Lagrangian. A single target pulls from both sides, so that the budget is used, unless the whole space keeps it;
    several are bounds.
    """

    multipliers: Tensor

    def __init__(self, terms: Sequence[CostTerm], rate: float) -> None:
        super().__init__()
        self.terms, self.rate = tuple(terms), rate
        self.register_buffer("multipliers", torch.zeros(len(terms)))
        self._expected = [float("nan")] * len(terms)

    def forward(self, loss: Tensor, p: Tensor, mixture: Tensor, rng: np.random.Generator) -> Tensor:
        least = -float("inf") if len(self.terms) == 1 and self.terms[0].within_reach else 0.0
        for i, term in enumerate(self.terms):
            assert term.bound is not None
            sign = 1.0 if term.upper else -1.0
            expected = term.cost(p, rng)
            excess = sign * (expected - term.bound) / (abs(term.bound) or 1.0) + AIM
            pull = (self.multipliers[i] + DAMPING * excess.detach()).clamp(min=least)
            loss = loss + pull * excess
            self.multipliers[i] = (self.multipliers[i] + self.rate * excess.detach()).clamp(min=least)
            self._expected[i] = float(expected.detach())
        return loss

    def report(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for term, multiplier, expected in zip(self.terms, self.multipliers.tolist(), self._expected, strict=True):
            if expected == expected:
                found |= {f"expected {term.name}": expected, f"multiplier of {term.name}": multiplier}
        return found


class FbnetPhase(Phase):
    """A step trains the weights on a mixture of all blocks; after some of them other images train the choices."""

    name, warmup = "fbnet", 0

    def __init__(
        self, run: Run, network: MixedNetwork, config: OneShotConfig, price: Published | DualAscent, batches: Batches
    ) -> None:
        self.steps = max(1, round(config.epochs * run.batches.steps_per_epoch))
        self.lr = config.learning_rate or LR
        self._run, self._network, self._config, self._price, self._batches = run, network, config, price, batches

    def resolution(self, step: int) -> int:
        side: int = self._network.space.primitives()[0].inputs[0][-1]
        return side

    def mixture(self, step: int, purpose: int, logits: Tensor) -> Tensor:
        """The weight of every block in `step`, drawn alike in every process."""
        generator = torch.Generator().manual_seed(int(self.rng(purpose, step).integers(2**62)))
        temperature = self._config.temperature * exp(-ANNEALED * step / self.steps)
        return self._network.choices.gumbel_softmax(logits, temperature, generator)

    def rng(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, 7, purpose, step])

    def losses(self, step: int, images: Tensor, labels: Tensor) -> Losses:
        gates = gates_of(self._network, self.mixture(step, OF_WEIGHTS, self._network.choices.logits))
        logits = self._network(images, gates).float()
        yield "the mixture", F.cross_entropy(logits, labels, label_smoothing=self._config.label_smoothing)

    def stepped(self, step: int) -> dict[str, float]:
        each, of = self._batches.steps_per_epoch, self._run.batches.steps_per_epoch
        before, after = step * each // of, (step + 1) * each // of
        if step < self._config.weights_first * self.steps:
            return {}
        found: dict[str, float] = {}
        for number in range(before, after):
            found = self._choose(step, number)
        return found and {**found, "entropy": float(self._network.choices.entropy().mean()), **self._price.report()}

    def _choose(self, step: int, number: int) -> dict[str, float]:
        """One update of the choices on their own images, the `number`-th batch of these."""
        choices, group = self._network.choices, self._run.group
        images, labels = self._batches.at(number, self.resolution(step))
        logits = choices.logits.clone().requires_grad_()
        mixture = self.mixture(step, OF_CHOICES, logits)
        with self._run.precision():
            guess = self._network(images, gates_of(self._network, mixture)).float()
            loss = F.cross_entropy(guess, labels)
            loss = self._price(loss, choices.probabilities(logits), mixture, self.rng(DRAWN_COSTS, number))
        (gradient,) = torch.autograd.grad(loss, logits)
        found = {"the choices": float(loss.detach())}
        self._run.check_finite(found, step, self.name)
        choices.update(group.average(gradient), self._config.arch_learning_rate, self._config.arch_weight_decay)
        return found

    def finish(self) -> dict[str, float]:
        return {"entropy": float(self._network.choices.entropy().mean()), **self._price.report()}


def gates_of(network: MixedNetwork, mixture: Tensor) -> list[Gate]:
    """All choices of every layer with their weights."""
    counts = network.choices.counts
    return [dict(enumerate(row[:count].unbind())) for row, count in zip(mixture.unbind(), counts, strict=True)]
