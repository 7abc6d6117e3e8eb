"""The whole job on this machine's CPU: profile, fit, train, search under three budgets, verify, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.documents import SAMPLES_FILE
from hwnas.core.files import write_json
from hwnas.core.progress import say

SPACE = "ofa-mbv3:width=0.5,resolution=64,num_classes=10"
METRIC = "latency_ms"
NETWORKS, REPEATS, HELD_OUT = 100, 20, 32
TIMED_S = 0.3
MODELS = ("sum", "linear1", "linear2", "mlp", "lstm")
SUB_NETWORKS, SUB_NETWORK_S, EVALUATIONS = 120, 20.0, 20_000
BUDGETS = (0.2, 0.45, 0.75)
"""Where the budgets lie between the least and the most that the space can reach."""


@dataclass
class Steps:
    """Says which step of how many is under way, and how long each took."""

    total: int
    seconds: dict[str, float]

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        say(f"step {len(self.seconds) + 1} of {self.total}: {title}")
        started = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - started


def quickstart(out: str | Path = "quickstart", seed: int = 0) -> dict[str, Any]:
    """Do the whole job and return what `quickstart.json` holds; the same call resumes what was interrupted.

    Everything is measured and trained here and now: one thread, batch 1, fp32 under ONNX Runtime.
    """
    out = Path(out)
    steps = Steps(5, {})
    with steps.step("measure primitives and networks"):
        run = _profile(out / "profile", seed)
    with steps.step("fit predictors"):
        models = _fit(out, seed)
    with steps.step("train a super-network"):
        supernet = _train(out / "supernet", seed)
    with steps.step("search three budgets and measure the winners"):
        winners = _search(out, models, supernet, seed)
    with steps.step("write the report"):
        from hwnas.report import write_report

        page = write_report(out)
    report = {"run": run, "models": models, "winners": winners, "seconds": steps.seconds, "report": str(page)}
    write_json(out / "quickstart.json", report)
    return report


def _profile(folder: Path, seed: int) -> dict[str, Any]:
    from hwnas.profile import Effort, profile

    effort = Effort(time_limit_s=TIMED_S)
    return profile(SPACE, folder, networks=NETWORKS, repeats=REPEATS, seed=seed, effort=effort).summary()


def _fit(out: Path, seed: int) -> dict[str, Any]:
    """Held-out metrics of each model, beside the noise floor; the models are saved under `models/`."""
    from hwnas.predict import fit_predictor

    reports = {}
    for name in MODELS:
        report = fit_predictor(
            out / "profile", SPACE, METRIC, model=name, test=HELD_OUT, seed=seed, out=out / "models" / name
        )
        reports[name] = report.to_json()
        noise = f", noise floor {report.noise.mape:.2f} %" if report.noise else ""
        say(f"  {name}: held-out MAPE {report.metrics['mape']:.2f} %{noise}")
    return reports


def _train(folder: Path, seed: int) -> Path:
    from hwnas.train import train_supernet

    train_supernet(_recipe(seed), folder)
    return folder


def _recipe(seed: int) -> Any:
    from hwnas.train import DataConfig, SupernetConfig

    return SupernetConfig(
        space=SPACE,
        data=DataConfig(name="digits"),
        rule="sandwich",
        epochs=8,
        batch=32,
        learning_rate=0.12,
        subnets=3,
        bounds_every=4,
        teacher_fraction=0.1,
        calibration_images=200,
        seed=seed,
    )


def _search(out: Path, models: dict[str, Any], supernet: Path, seed: int) -> list[dict[str, Any]]:
    """The winner of each budget as JSON, measured; the cost model is the one with the least held-out error."""
    from hwnas.search import cost_sources, export, search
    from hwnas.search.reach import reachable
    from hwnas.search.subnets import supernet_source
    from hwnas.spaces import get_space

    space = get_space(SPACE)
    chosen = min((name for name in MODELS if name != "sum"), key=lambda name: models[name]["metrics"]["mape"])
    costs = cost_sources([str(out / "models" / chosen)], space)
    accuracy = supernet_source(str(supernet), space, SUB_NETWORKS, SUB_NETWORK_S)
    least, most = reachable(costs[METRIC], space)
    search(space, accuracy, costs, front=True, seed=seed, evaluations=EVALUATIONS, out=out / "searches" / "front")
    store = out / "profile" / SAMPLES_FILE
    winners = []
    for number, part in enumerate(BUDGETS, start=1):
        budget = float(np.round(least + part * (most - least), 4))
        say(f"  budget {number}: {budget:g} ms of {least:.3f} to {most:.3f} ms reachable")
        folder = out / "searches" / f"budget-{number}"
        result = search(
            space, accuracy, costs, max={METRIC: budget}, seed=seed, evaluations=EVALUATIONS, store=store, out=folder
        )
        export(result.best.arch, space, folder / "winner.onnx", supernet=supernet)
        winners.append(result.best.to_json())
    return winners
