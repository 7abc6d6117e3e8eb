"""Certificates: what was claimed about a winner, and what the device says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.documents import CERTIFICATES, stamp
from hwnas.core.errors import InputError, UnavailableError
from hwnas.core.files import check_folder
from hwnas.core.progress import say
from hwnas.core.target import Target
from hwnas.core.units import ENERGY, LATENCY, MEMORY, THROUGHPUT, quantity_of
from hwnas.profile.metrics import OF_COLUMN
from hwnas.profile.stats import relative_half_width
from hwnas.search import local
from hwnas.search.export import Exported, export
from hwnas.search.result import Candidate, Result, portable
from hwnas.search.sources import COUNTS, count
from hwnas.spaces import get_space

if TYPE_CHECKING:
    from hwnas.profile import Measurement

Status = Literal["passed", "failed", "not_measured"]
ORDER: tuple[Status, ...] = ("failed", "not_measured", "passed")
MS_PER_S = 1000.0
METRICS = {LATENCY: LATENCY.name, THROUGHPUT: LATENCY.name, ENERGY: ENERGY.name, MEMORY: MEMORY.name}
"""What is measured for a claim about each quantity, unless it is about another column that a run has."""


@dataclass(frozen=True)
class Claim:
    """`quantity` of `arch` was predicted to be `predicted`, and has to be at most (or at least) `budget`.

    `supernet` is the folder that its weights come from; None: untrained ones, as fast as any. `column` is what the
    prediction was learnt from, such as `above_idle_energy_mj`.
    """

    space: str
    arch: str
    quantity: str
    budget: float
    upper: bool
    predicted: float
    target: Target | None
    supernet: str | None = None
    column: str = ""

    @property
    def metric(self) -> str | None:
        """What has to be measured; None where it is nothing that can be."""
        return self.column if self.column in OF_COLUMN else METRICS.get(quantity_of(self.quantity))

    @property
    def network(self) -> str:
        """What tells the networks of claims apart."""
        return f"{self.space} {self.arch} {self.supernet or 'untrained'}"

    def export(self, batch: int) -> Exported:
        return export(self.arch, self.space, batch=batch, supernet=self.supernet)


@dataclass(frozen=True)
class Certificate:
    """What came of a claim.

    Attributes:
        status: `passed` where the measured median keeps the budget, `failed` where it does not, `not_measured` where
            this machine is not the target (`reason` says why).
        measured, low, high: the median and its 95 % confidence interval, in the quantity's unit; None: not measured.
        n: timings they rest on.
        verdict: of the measurement: steady or noisy.
        difference: how far ONNX Runtime's output is from PyTorch's, relative to the largest output.
    """

    claim: Claim
    status: Status
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    verdict: str = ""
    difference: float | None = None
    reason: str = ""
    environment: Mapping[str, Any] | None = None

    @property
    def worst(self) -> float | None:
        """The end of the confidence interval that is nearer to the bound, or beyond it."""
        return self.high if self.claim.upper else self.low

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """(low, measured, high); None: not measured."""
        if self.low is None or self.measured is None or self.high is None:
            return None
        return self.low, self.measured, self.high

    @property
    def surely(self) -> bool:
        """Whether the whole confidence interval keeps the budget."""
        return self.worst is not None and _status(self.claim, self.worst) == "passed"

    @property
    def repeatable(self) -> bool:
        """Whether another campaign could say something else."""
        return self.interval is not None and self.verdict not in ("exact", "computed")

    def joined(self, other: Certificate) -> Certificate:
        """What this campaign and another say of one claim: the mean, and an interval that holds both intervals."""
        for one in (self, other):
            if not one.repeatable:
                return one
        assert self.interval and other.interval
        (low, median, high), (other_low, other_median, other_high) = self.interval, other.interval
        measured, low, high = (median + other_median) / 2, min(low, other_low), max(high, other_high)
        width, goal = relative_half_width(measured, low, high), local.EFFORT.goal
        return replace(
            other,
            status=_status(self.claim, measured),
            measured=measured,
            low=low,
            high=high,
            n=self.n + other.n,
            verdict="steady" if width <= goal else "noisy",
            reason="" if width <= goal else f"two campaigns lie within {width:.1%}, {goal:.0%} was asked for",
        )

    def to_json(self) -> dict[str, Any]:
        claim = asdict(self.claim) | {"target": self.claim.target and self.claim.target.to_json()}
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "claim"}
        return {**claim, **own, **stamp()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Certificate:
        """What `to_json` made; raises `KeyError`, `TypeError` or `InputError` for anything else."""
        claim = {name: values[name] for name in Claim.__dataclass_fields__}
        claim["target"] = claim["target"] and Target.from_json(claim["target"])
        own = {name: values[name] for name in cls.__dataclass_fields__ if name != "claim"}
        return cls(Claim(**claim), **own)


def verify(
    runs: str | Path | Sequence[str | Path], *, store: str | Path | None = None, seed: int = 0
) -> list[Certificate]:
    """Measure the winners of one or several searches, interleaved, and write each one's certificates into its folder.

    Args:
        runs: run folders of `search`.
        store: the sample store of the profile that the cost model was fitted on, so that both refer to one speed of
            the machine; None: the samples are not kept.

    Where this machine cannot measure what a folder's certificates say was measured, these are kept. Raises `InputError`
    where a folder holds no search, or one without a budget.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    results = [Result.load(folder) for folder in folders]
    for folder in folders:
        check_folder(folder)
    claims = [_readable_claims(folder, result) for folder, result in zip(folders, results, strict=True)]
    for folder, found in zip(folders, claims, strict=True):
        if not found:
            raise InputError(f"{folder}: the search had no budget, so there is nothing to verify; give --max or --min")
    certificates = certify([claim for found in claims for claim in found], store=store, seed=seed)
    queue = iter(certificates)
    for folder, result, found in zip(folders, results, claims, strict=True):
        own = [next(queue) for _ in found]
        if lost := _lost(Path(folder), own):
            say(f"{folder} keeps the certificates measured before: {lost.reason}")
        else:
            save(folder, result, own)
    return certificates


def _lost(folder: Path, certificates: Sequence[Certificate]) -> Certificate | None:
    """One of `certificates` that is not measured, where the folder's own is; None where there is none."""
    measured: set[str] = set()
    with suppress(InputError, KeyError, TypeError):  # what cannot be read is nothing to keep
        stored = CERTIFICATES.read(folder / CERTIFICATES.file)["certificates"]
        measured = {each["quantity"] for each in stored if each["measured"] is not None}
    return next((c for c in certificates if c.status == "not_measured" and c.claim.quantity in measured), None)


def _readable_claims(folder: str | Path, result: Result) -> list[Claim]:
    try:
        return claims_of(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: a damaged search ({type(error).__name__}: {error}); search again") from error


def save(folder: str | Path, result: Result, certificates: Sequence[Certificate]) -> Result:
    """Write the winner's certificates and the result that carries the decisive one."""
    save_certificates(folder, certificates)
    done = result.with_best(replace(result.best, certificate=decisive(certificates).to_json()))
    done.save(folder)
    return done


def save_certificates(folder: str | Path, certificates: Sequence[Certificate]) -> None:
    document = {"certificates": [c.to_json() for c in certificates]}
    CERTIFICATES.write(Path(folder) / CERTIFICATES.file, portable(document, Path(folder).resolve()))


def decisive(certificates: Sequence[Certificate]) -> Certificate:
    """The one that decides: a failed one, else one that was not measured, else one that passed."""
    return min(certificates, key=lambda certificate: ORDER.index(certificate.status))


def claims_of(result: Result, candidate: Candidate | None = None) -> list[Claim]:
    """The claims that a search makes about its winner, or about another candidate: one a bounded cost."""
    problem, winner = result.problem, candidate or result.best
    claims = []
    for constraint in problem["constraints"]:
        quantity, upper = constraint["quantity"], "max" in constraint
        if quantity in winner.costs:
            target = problem["targets"].get(quantity)
            where = Target.from_json(target, quantity) if target else None
            budget = constraint["max" if upper else "min"]
            claims.append(
                Claim(
                    problem["space"],
                    winner.arch,
                    quantity,
                    budget,
                    upper,
                    winner.costs[quantity],
                    where,
                    problem["supernet"],
                    problem["columns"].get(quantity, ""),
                )
            )
    return claims


def certify(claims: Sequence[Claim], *, store: str | Path | None = None, seed: int = 0) -> list[Certificate]:
    """A certificate a claim; the claims on one target are measured interleaved in one campaign."""
    found: dict[Claim, Certificate] = {}
    for target in dict.fromkeys(claim.target for claim in claims):
        group = [claim for claim in claims if claim.target == target]
        found |= dict(zip(group, _certify_on(target, group, store, seed), strict=True))
    return [found[claim] for claim in claims]


def _certify_on(target: Target | None, claims: list[Claim], store: str | Path | None, seed: int) -> list[Certificate]:
    measurable = {claim: metric for claim in claims if (metric := claim.metric)}
    try:
        settings = local.local_settings(target)
    except UnavailableError as error:
        return [_unmeasured(claim, str(error)) for claim in claims]
    if target is None or not measurable:
        return [_unmeasured(claim, "") for claim in claims]
    exported = {claim.network: claim.export(target.batch) for claim in measurable}
    measured: dict[Claim, Measurement] = {}
    for metric in dict.fromkeys(measurable.values()):
        asked = [claim for claim, own in measurable.items() if own == metric]
        models = {claim.network: exported[claim.network].model for claim in asked}
        networks = {claim.network: (claim.space, claim.arch) for claim in asked}
        found = local.measure(models, networks, target, settings, metric, store, seed)
        measured |= {claim: found[claim.network] for claim in asked}
    environment = local.environment(settings)
    return [
        _decide(claim, target, measured[claim], exported[claim.network].difference, environment)
        if claim in measured
        else _unmeasured(claim, "")
        for claim in claims
    ]


def _unmeasured(claim: Claim, reason: str) -> Certificate:
    name = claim.quantity.rpartition(".")[2]
    if name in COUNTS:
        space = get_space(claim.space)
        value = float(count(name, space).predict(space.parse(claim.arch)[None])[0])
        return Certificate(claim, _status(claim, value), value, value, value, 1, "exact")
    return Certificate(claim, "not_measured", reason=reason or f"{claim.quantity} cannot be measured here")


def _decide(
    claim: Claim, target: Target, found: Measurement, difference: float, environment: Mapping[str, Any]
) -> Certificate:
    if found.verdict == "unmeasurable":
        return _unmeasured(claim, found.reason)
    if found.verdict == "failed":
        return Certificate(claim, "failed", verdict="failed", difference=difference, reason=found.reason)
    median, low, high = found.median, found.low, found.high
    if quantity_of(claim.quantity) == THROUGHPUT:
        median, low, high = (MS_PER_S * target.batch / end for end in (median, high, low))
    status = _status(claim, median)
    return Certificate(claim, status, median, low, high, found.n, found.verdict, difference, found.reason, environment)


def _status(claim: Claim, measured: float) -> Status:
    return "passed" if (measured <= claim.budget if claim.upper else measured >= claim.budget) else "failed"
