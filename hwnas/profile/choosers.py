"""`Chooser`: which networks a run measures.

    class Smallest(Chooser):
        def design(self, request):
            space = get_space(request.space)
            pool = space.distinct(space.sample(1000, request.seed))
            return pool[space.macs(pool).argsort()[: request.networks]]

is what `profile(..., choose=Smallest())` takes. In `hwnas.predict.choosers` are those that learn, and the registry in
which `--select` finds one by its name.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from hwnas.core.arrays import Population
from hwnas.core.errors import InputError
from hwnas.profile.run import Request, Run
from hwnas.spaces import SearchSpace, get_space


class Chooser:
    """Picks networks before anything is measured (`design`), by what is measured (`pick`), or both.

    Attributes:
        name: what `--select` calls it.
        options: of `until` and `transfer_from`, those that the command line makes it of, in this order.
        most: how many networks it picks at most where no number is asked for.
    """

    name: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    most: ClassVar[int] = 0

    @property
    def label(self) -> str:
        """What the choice is called in `run.json`: equal for choosers that pick the same."""
        return self.name or type(self).__name__

    @property
    def adaptive(self) -> bool:
        """Whether what it picks depends on what is measured."""
        return type(self).pick is not Chooser.pick

    def request(self, space: str | SearchSpace, networks: int, seed: int = 0, repeats: int = 0) -> Request:
        """What a run that measures so many networks at most is asked for; raises `InputError` for negative counts."""
        if networks < 0 or repeats < 0:
            raise InputError(f"networks ({networks}) and repeats ({repeats}) are counts")
        if repeats and not (networks or self.most):
            raise InputError(f"{repeats} networks are to be measured twice, but none once: say how many (--networks)")
        spec = get_space(space).spec if isinstance(space, str) else space.spec
        return Request(spec, networks or self.most, self.label, seed, repeats)

    def design(self, request: Request) -> Population:
        """The networks (n, genes) to begin with; raises `InputError` where `request` cannot be met."""
        return get_space(request.space).sample(0)

    def pick(self, run: Run, request: Request) -> Population:
        """The networks (n, genes) to measure next, now that those chosen are in `run`; none where it wants no more."""
        return get_space(request.space).sample(0)

    def outcome(self, run: Run, request: Request) -> dict[str, Any]:
        """What the choice came to, as JSON."""
        return {}

    def describe(self, outcome: dict[str, Any]) -> str:
        """`outcome` in words, empty where there is nothing to say."""
        return ""


class AtRandom(Chooser):
    """Distinct random networks; more of them with the same seed begin with the same ones."""

    name = "random"

    def design(self, request: Request) -> Population:
        return random_networks(get_space(request.space), request.networks, request.seed)


at_random = AtRandom()


def random_networks(space: SearchSpace, n: int, seed: int) -> Population:
    """`n` distinct random networks; a larger `n` with the same seed begins with the same ones."""
    if n > space.size:
        raise InputError(f"--networks {n}: {space.spec} has only {space.size} architectures")
    rng = np.random.default_rng(seed)
    drawn = space.sample(0, rng)
    while len(drawn) < n:
        drawn = space.distinct(np.concatenate([drawn, space.sample(256, rng)]))
    return drawn[:n]
