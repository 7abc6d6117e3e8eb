"""The finalists of a search: what the device said of them, and what that says of their budgets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hwnas.core.documents import JOURNAL
from hwnas.core.errors import InputError
from hwnas.core.progress import say
from hwnas.search.result import Candidate, Result
from hwnas.search.verify import Certificate, Claim, certify, claims_of, decisive

ROOM, NEAR = 0.03, 0.05

Certificates = list[Certificate]


class Finalists:
    """The finalists measured so far, and what the device said of them.

    Args:
        store: see `verify`.
        journal: the file that keeps what was measured until the search is done; None: none does.
        use_up: whether those that use no budget up come after those that do.
    """

    def __init__(self, store: str | Path, journal: Path | None, seed: int, use_up: bool) -> None:
        self.store, self.seed, self.use_up = store, seed, use_up
        self.known: dict[str, Certificates] = {}
        self.candidates: dict[str, Candidate] = {}
        self.campaigns = 0
        self.journal = Journal(journal)

    def reconsider(self, found: Sequence[Candidate]) -> None:
        """Take what is thought now of those that were measured before."""
        self.candidates |= {candidate.arch: candidate for candidate in found if candidate.arch in self.known}

    def measure(self, result: Result, candidates: Sequence[Candidate]) -> None:
        """Measure `candidates` in one campaign; what was known of them is joined with it."""
        claims = [claims_of(result, candidate) for candidate in candidates]
        every = [claim for part in claims for claim in part]
        found = iter(self._certificates(every))
        self.campaigns += 1
        for candidate, part in zip(candidates, claims, strict=True):
            fresh, before = [next(found) for _ in part], self.known.get(candidate.arch, [])
            self.known[candidate.arch] = [a.joined(b) for a, b in zip(before, fresh, strict=True)] if before else fresh
            self.candidates[candidate.arch] = candidate

    def _certificates(self, claims: list[Claim]) -> Certificates:
        """Those of this campaign: measured, or kept of a search that was cut off."""
        if (kept := self.journal.recall(self.campaigns, claims)) is not None:
            return kept
        certificates = certify(claims, store=self.store, seed=self.seed + self.campaigns)
        self.journal.keep(self.campaigns, certificates)
        return certificates

    def promising(self, candidate: Candidate) -> bool:
        """Whether it keeps its budgets in one campaign, and another could say otherwise."""
        certificates = self.known[candidate.arch]
        return standing(certificates) == 0 and any(certificate.repeatable for certificate in certificates)

    def rank(self, candidate: Candidate) -> tuple[int, bool, float]:
        certificates = self.known[candidate.arch]
        return standing(certificates), self.use_up and not uses_up(certificates), -candidate.accuracy


class Journal:
    """The certificates of a search under way, campaign by campaign: one that is cut off goes on behind them.

    A search asks for the same claims again, so what it asks for says whether a campaign is its own.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.campaigns = self._read()

    def recall(self, number: int, claims: list[Claim]) -> Certificates | None:
        """The certificates of campaign `number`; None where it was not measured, or of other claims."""
        if number < len(self.campaigns) and [c.claim for c in self.campaigns[number]] == claims:
            if number == 0:
                say(f"{self.path} holds what was measured before this search was cut off; it goes on from there")
            return self.campaigns[number]
        return None

    def keep(self, number: int, certificates: Certificates) -> None:
        """Write campaign `number`; what followed it was of another search."""
        self.campaigns[number:] = [certificates]
        if self.path is not None:
            with suppress(InputError):
                JOURNAL.write(self.path, {"campaigns": [[c.to_json() for c in part] for part in self.campaigns]})

    def _read(self) -> list[Certificates]:
        try:
            stored = JOURNAL.read(self.path)["campaigns"] if self.path is not None else []
            return [[Certificate.from_json(values) for values in part] for part in stored]
        except (InputError, KeyError, TypeError):  # what cannot be read is measured anew
            return []


def standing(certificates: Certificates) -> int:
    """0 where the whole confidence interval keeps every budget, or nothing can be measured; 1 where the medians do."""
    if decisive(certificates).status == "failed":
        return 2
    return int(any(c.measured is not None and not c.surely for c in certificates))


def uses_up(certificates: Certificates) -> bool:
    """Whether a budget is used but for `ROOM` of it, as measured, or as predicted where nothing is."""
    return any(_share(c.claim, c.measured) >= 1 - ROOM for c in certificates)


def leaves_room(certificates: Certificates, use_up: bool = False) -> bool:
    """Whether no budget is used up, and one that was thought nearly so, to `NEAR`, is surely used less than thought.

    With `use_up` also where it was thought to be used up, and is perhaps used less.
    """
    measured = [c for c in certificates if c.measured is not None and c.verdict != "exact"]
    thought = [_share(c.claim, c.claim.predicted) for c in measured]
    return not uses_up(certificates) and any(
        share >= 1 - NEAR and (_share(c.claim, c.worst) < share or (use_up and share >= 1 - ROOM))
        for c, share in zip(measured, thought, strict=True)
    )


def room_left(certificates: Certificates) -> list[str]:
    """That a budget is not used up, in words."""
    share = max(_share(c.claim, c.measured) for c in certificates if c.measured is not None)
    return [
        f"the winner takes {100 * share:.0f} % of its budget as measured, less than was predicted: more finalists "
        "measured (--measure) may find a more accurate one"
    ]


def _share(claim: Claim, value: float | None) -> float:
    """The share of the budget that `value` takes, the prediction where it is None; 0 where that cannot be said."""
    value = claim.predicted if value is None else value
    if min(claim.budget, value) <= 0:
        return 0.0
    return value / claim.budget if claim.upper else claim.budget / value
