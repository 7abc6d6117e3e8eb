"""Predictors on tables that others measured; skipped where the reference data is absent."""

import os
from pathlib import Path

import pytest

from hwnas.predict import fit_predictor, read_measurements
from hwnas.predict.evaluation import noise_floor
from hwnas.spaces import get_space

FOLDER = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference data in {FOLDER} (HWNAS_REFERENCE_DATA)")


def test_copies_in_the_energy_table() -> None:
    data = read_measurements(
        FOLDER / "nb201_pi5_energy.parquet", get_space("nasbench201"), "pi5_torchmobile_cifar100_mj"
    )
    assert (len(data), data.copies) == (6466, 15625 - 6466)


def test_noise_of_swapped_cells() -> None:
    noise = noise_floor(read_measurements(FOLDER / "nb201.parquet", get_space("nasbench201"), "1080ti_1_ms"))
    assert noise is not None and noise.source == "equal" and noise.pairs == 1500
    assert noise.mape == pytest.approx(1.7, abs=0.2)


@pytest.mark.parametrize(
    ("table", "space", "metric", "rows", "most"),
    [
        ("mnasnet_imagenet", "mnasnet", "latency_zcu102_ms", 300, 0.65),
        ("mnasnet_imagenet", "mnasnet", "throughput_a100_ips", 300, 0.4),
        ("fbnet_latency", "fbnet:variant=cifar", "1080ti_64_ms", 300, 1.2),
        ("ofa_mbv3_latency", "ofa-mbv3:width=1.2", "titan_xp_64_ms", 100, 2.4),
    ],
)
def test_gaussian_process_learns_real_devices(table: str, space: str, metric: str, rows: int, most: float) -> None:
    report = fit_predictor(FOLDER / f"{table}.parquet", space, metric, model="gp", train=rows, test=300, seed=7)
    assert report.metrics["mape"] is not None and report.metrics["mape"] < most
    assert report.metrics["coverage_90"] is not None and 0.8 < report.metrics["coverage_90"] < 0.98
    assert all(report.metrics["mape"] < (baseline["mape"] or 0) for baseline in report.baselines.values())
