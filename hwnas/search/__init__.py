"""What to choose: accuracy and cost sources, constraints, algorithms, and the certificates of winners."""

from hwnas.search.algorithm import algorithms
from hwnas.search.export import Exported, export
from hwnas.search.oneshot import one_shot_search
from hwnas.search.problem import Constraint, Problem, make_problem
from hwnas.search.result import Candidate, Result
from hwnas.search.run import search, solve
from hwnas.search.source import Source
from hwnas.search.sources import accuracy_source, cost_sources, sources
from hwnas.search.verify import Certificate, verify

__all__ = [
    "Candidate",
    "Certificate",
    "Constraint",
    "Exported",
    "Problem",
    "Result",
    "Source",
    "accuracy_source",
    "algorithms",
    "cost_sources",
    "export",
    "make_problem",
    "one_shot_search",
    "search",
    "solve",
    "sources",
    "verify",
]
