"""How many winners keep their measured budget on this CPU, at the first try and after the correcting loop.

    python benchmarks/search_certified.py --out runs/certified [--budgets 10] [--networks 100]

For each space: networks are measured, a latency model is fitted to them, and searches run under budgets spread over
what the space can reach. What counts here is the latency, so the accuracy is a fixed random function of the genes. All
winners are measured once more at the end, one by one.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hwnas.predict import fit_predictor
from hwnas.profile import profile
from hwnas.search import Source, cost_sources, search, verify
from hwnas.search.reach import reachable
from hwnas.spaces import SearchSpace, get_space

SPACES = ("ofa-mbv3:width=0.5,resolution=64", "ofa-mbv2:width=0.5,resolution=64")
METRIC = "latency_ms"


def rugged(space: SearchSpace) -> Source:
    """An accuracy in which larger choices help and neighbouring genes interact."""
    genes = np.arange(len(space.choices))
    first, second = np.random.default_rng(0).random((2, len(genes), int(space.choices.max())))
    first += np.arange(first.shape[1])

    def predict(population: np.ndarray) -> np.ndarray:
        one, two = first[genes, population], second[genes, population]
        return np.asarray(0.5 + 0.002 * (one.sum(1) + (one[:, 1:] * two[:, :-1]).sum(1)))

    return Source("rugged", "accuracy", predict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", type=int, default=10, help="of each space")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=20_000)
    options = parser.parse_args()
    counts = np.zeros(3, dtype=int)
    for number, spec in enumerate(SPACES):
        counts += one_space(get_space(spec), options.out / f"space-{number}", options)
    print(
        f"of {len(SPACES) * options.budgets} winners: {counts[0]} within budget at the first try, {counts[1]} "
        f"certified after the loop, {counts[2]} of these within budget when measured once more"
    )


def one_space(space: SearchSpace, folder: Path, options: argparse.Namespace) -> np.ndarray:
    profile(space, folder / "profile", networks=options.networks)
    report = fit_predictor(folder / "profile", space, METRIC, out=folder / "model")
    print(f"{space.spec}: {report.model.name}, cross-validated MAPE {report.metrics['mape']:.2f} %", flush=True)
    costs, store = cost_sources([str(folder / "model")], space), folder / "profile" / "samples.sqlite"
    least, most = reachable(costs[METRIC], space)
    first, looped, certified = [], [], []
    for seed, part in enumerate(np.linspace(0.1, 0.9, options.budgets)):
        budget = float(least + part * (most - least))
        asked = {"max": {METRIC: budget}, "seed": seed, "evaluations": options.evaluations}
        first.append(folder / f"first-{seed}")
        looped.append(folder / f"looped-{seed}")
        search(space, rugged(space), costs, measured=0, out=first[-1], **asked)
        result = search(space, rugged(space), costs, store=store, out=looped[-1], **asked)
        found = result.best.certificate or {}
        certified.append(found.get("status") == "passed")
        print(
            f"  budget {budget:.4f} ms: {found.get('status')}, measured {found.get('measured'):.4f} "
            f"[{found.get('low'):.4f}, {found.get('high'):.4f}]; {'; '.join(result.notes)}",
            flush=True,
        )
    kept, again = ([verify(run, store=store)[0].status == "passed" for run in runs] for runs in (first, looped))
    return np.array([sum(kept), sum(certified), sum(again)])


if __name__ == "__main__":
    main()
