"""The spaces are right when they count what others published, on every row."""

from math import prod
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hwnas.spaces import get_space
from hwnas.spaces.ops import Activation, Add, BatchNorm, GlobalAvgPool, Mul


def rows(folder: Path, name: str) -> dict[str, list]:
    return pq.read_table(folder / name).to_pydict()


def test_nasbench_macro_parameters_and_macs(reference_data: Path) -> None:
    space, data = get_space("nasbench-macro"), rows(reference_data, "nasbench_macro_cifar10.parquet")
    population = space.parse_many(data["arch"])
    np.testing.assert_array_equal(space.parameters(population), data["params"])
    np.testing.assert_array_equal(space.macs(population), data["flops"])


def test_once_for_all_parameters_and_macs(reference_data: Path) -> None:
    space, data = get_space("ofa-mbv3"), rows(reference_data, "ofa_mbv3_imagenet_acc.parquet")
    population = space.parse_many(data["arch"])
    np.testing.assert_array_equal(space.parameters(population), data["params"])
    np.testing.assert_array_equal(space.macs(population), data["macs"])


def test_mnasnet_parameters(reference_data: Path) -> None:
    space, data = get_space("mnasnet"), rows(reference_data, "mnasnet_imagenet.parquet")
    population = space.parse_many(data["arch"])
    np.testing.assert_array_equal(space.parameters(population), np.round(np.array(data["params_m"]) * 1e6))


def test_mnasnet_published_macs_count_element_wise_work_too(reference_data: Path) -> None:
    """The published figure is ours, once, plus a few operations for each element of the layers that we leave out."""
    space, data = get_space("mnasnet"), rows(reference_data, "mnasnet_imagenet.parquet")
    population, published = space.parse_many(data["arch"]), np.array(data["macs_m"]) * 1e6
    counts = [space.macs(population)]
    for kind in (BatchNorm, Activation, Add, Mul, GlobalAvgPool):
        touched = [sum(prod(n.shapes[0]) for n in p.body if isinstance(n.op, kind)) for p in space.primitives()]
        counts.append(space.total(touched, population))
    design = np.stack([*counts, np.ones(len(published))], axis=1)
    scale = design.max(axis=0)
    coefficients = np.linalg.lstsq(design / scale, published, rcond=None)[0] / scale
    assert abs(coefficients[0] - 1) < 1e-5
    assert np.abs(design @ coefficients - published).max() < 1e-5 * published.mean()
    assert 3 < coefficients[1] + coefficients[2] < 5


def test_every_published_architecture_is_read_and_written_back(reference_data: Path) -> None:
    for name, spec in (
        ("nb201.parquet", "nasbench201"),
        ("fbnet_latency.parquet", "fbnet:variant=cifar"),
        ("ofa_mbv3_latency.parquet", "ofa-mbv3:width=1.2"),
        ("mnasnet_imagenet.parquet", "mnasnet"),
        ("nasbench_macro_cifar10.parquet", "nasbench-macro"),
    ):
        space, archs = get_space(spec), rows(reference_data, name)["arch"]
        population = space.parse_many(archs)
        assert len(np.unique(population, axis=0)) > 0.99 * len(archs)
        np.testing.assert_array_equal(space.parse_many([space.format(row) for row in population]), population)
