"""The cycle and energy model: what it counts, how it is calibrated, and that nothing simulated passes for measured."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from hwnas.core.errors import InputError, TargetMismatchError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.fpga import (
    DpuModel,
    calibrate,
    calibrate_file,
    calibrate_networks,
    get_target,
    shipped_model,
    simulate,
    simulate_run,
    simulated_table,
    target_names,
)
from hwnas.fpga.calibration import fit, fit_energy, held_out_mape
from hwnas.fpga.demand import TERMS, block_demand, network_demand
from hwnas.fpga.model import LATENCY_TERMS, EnergyModel
from hwnas.parse import parse
from hwnas.spaces import Primitive, get_space
from hwnas.spaces.mobile import conv, linear, mbconv

DATA = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no reference data at {DATA} (HWNAS_REFERENCE_DATA)")
B4096 = get_target("zcu102-b4096")


def demand_of(primitive: Primitive, alone: bool = True) -> dict[str, float]:
    return dict(zip(TERMS, block_demand([primitive], B4096, alone)[0], strict=True))


def test_cycles_of_single_operations() -> None:
    assert demand_of(conv((17, 9, 9), 33, 3))["conv_cycles"] == 9 * 2 * 3 * 9 * 2
    assert demand_of(linear((100, 1, 1), 10))["conv_cycles"] == 7
    block = demand_of(mbconv((16, 10, 10), 16, 5, 1, 32))
    assert block["depthwise_cycles"] == 25 * 2 * 10 * 3
    assert block["conv_cycles"] == (2 + 2) * 10 * 2
    assert block["weight_bytes"] == 16 * 32 * 2 + 25 * 32


def test_memory_traffic_follows_the_size_of_the_features() -> None:
    small, large = mbconv((24, 56, 56), 24, 3, 1, 72), mbconv((24, 56, 56), 24, 3, 1, 144)
    assert demand_of(small)["spilled_bytes"] == 0
    assert demand_of(large)["spilled_bytes"] == 2 * 144 * 56 * 56
    assert demand_of(small)["boundary_bytes"] == 3 * 24 * 56 * 56
    assert demand_of(small, alone=False)["boundary_bytes"] == 0
    excited = mbconv((24, 56, 56), 24, 3, 1, 144, se=8)
    assert demand_of(excited)["spilled_bytes"] == 5 * 144 * 56 * 56


def test_a_network_costs_less_than_its_blocks_alone() -> None:
    space = get_space("ofa-mbv2:resolution=224")
    population = space.sample(20, 0)
    whole = simulate((space, population), B4096)
    table = simulated_table(space.primitives(), B4096)
    assert whole.energy_mj is not None
    assert (space.total(table.vector(space, "latency_ms"), population) > 1.05 * whole.latency_ms).all()
    assert (space.total(table.vector(space, "energy_mj"), population) > 1.05 * whole.energy_mj).all()


def test_simulated_is_marked_and_never_merges() -> None:
    table = simulated_table([conv((16, 8, 8), 16)], "zcu102-b4096")
    assert table.target.origin == "simulated"
    assert table.manifest["simulated"] is True
    assert all(cost.verdict == "simulated" for row in table.rows.values() for cost in row.values())
    measured = CostTable(Target(table.target.device, "vart", precision="int8", threads=0), table.rows)
    with pytest.raises(TargetMismatchError):
        measured.merge(table)
    with pytest.raises(InputError, match="is simulated"):
        calibrate(table, B4096)


def test_blocks_without_an_engine_have_no_row() -> None:
    fbnet = get_space("fbnet:variant=cifar")
    table = simulated_table(fbnet.primitives(), B4096)
    assert len(table.manifest["left_out"]) == 24
    with pytest.raises(InputError, match="24 of the primitives"):
        table.vector(fbnet, "latency_ms")
    with pytest.raises(InputError, match="no engine of a DPU runs swish"):
        simulate(get_space("mnasnet:act=swish").primitives(), B4096)


def test_calibration_recovers_known_coefficients(tmp_path: Path) -> None:
    space = get_space("mnasnet")
    truth = DpuModel({term: 0.5 + 0.1 * index for index, term in enumerate(LATENCY_TERMS)})
    population = space.sample(200, 1)
    demand = network_demand(space, population, B4096)
    latency = truth.latency_ms(demand, B4096)
    model = calibrate_networks(space, population[:100], latency[:100], B4096)
    np.testing.assert_allclose(model.latency_ms(demand, B4096), latency, rtol=0.02)
    assert model.provenance["assumed"] == ["gate_cycles"]
    model.save(tmp_path / "model.json")
    assert DpuModel.load(tmp_path / "model.json") == model
    assert held_out_mape(demand, latency, B4096) < 1


def test_energy_calibration() -> None:
    space = get_space("mnasnet")
    demand = network_demand(space, space.sample(60, 2), B4096)
    truth = DpuModel(dict.fromkeys(LATENCY_TERMS, 1.0), EnergyModel(4000.0, 10.0, 150.0, "known"))
    latency, energy = truth.latency_ms(demand, B4096), truth.energy_mj(demand, B4096)
    model = fit_energy(demand, latency, energy, "test")
    assert (model.static_mw, model.pj_per_mac, model.pj_per_byte) == pytest.approx((4000, 10, 150), rel=1e-3)


def test_a_table_of_blocks_calibrates(tmp_path: Path) -> None:
    blocks = get_space("ofa-mbv3:resolution=128").primitives()[::9]
    truth = DpuModel(dict.fromkeys(LATENCY_TERMS, 1.2), EnergyModel(4000.0, 10.0, 150.0, "known"))
    demand = block_demand(blocks, B4096)
    latency, energy = truth.latency_ms(demand, B4096), truth.energy_mj(demand, B4096)
    rows = {
        p.key: {"latency_ms": Cost(float(t)), "energy_mj": Cost(float(e))}
        for p, t, e in zip(blocks, latency, energy, strict=True)
    }
    CostTable(Target("board", "vart", precision="int8", origin="imported"), rows).save(tmp_path / "table.csv")
    report = calibrate_file(tmp_path / "table.csv", B4096, tmp_path / "model.json")
    assert report.held_out_mape < 2
    assert report.model.energy is not None
    assert report.model.energy.static_mw == pytest.approx(4000, rel=0.01)
    assert DpuModel.load(tmp_path / "model.json").provenance["n"] == len(blocks)


def test_a_table_of_networks_written_in_digits_calibrates(tmp_path: Path) -> None:
    space = get_space("nasbench-macro")
    population = space.distinct(space.sample(40, 0))
    latency = DpuModel(dict.fromkeys(LATENCY_TERMS, 1.2)).latency_ms(network_demand(space, population, B4096), B4096)
    archs = [space.format(row) for row in population]
    assert all(arch.isdigit() for arch in archs) and any(arch.startswith("0") for arch in archs)
    rows = [f"{arch},{value!r}" for arch, value in zip(archs, latency.tolist(), strict=True)]
    (tmp_path / "nets.csv").write_text("\n".join(["arch,latency_ms", *rows, f"{archs[0]},"]) + "\n")
    report = calibrate_file(tmp_path / "nets.csv", B4096, tmp_path / "model.json", space)
    assert (report.n, report.skipped) == (len(population), 1)
    assert report.held_out_mape < 2


def test_bad_calibrations_are_refused(tmp_path: Path) -> None:
    demand = block_demand([conv((16, 8, 8), 16)] * 10, B4096)
    with pytest.raises(InputError, match="8 or more"):
        fit(demand[:7], np.ones(7), B4096)
    with pytest.raises(InputError, match="positive latencies"):
        fit(demand, np.zeros(10), B4096)
    with pytest.raises(InputError, match="no engine of a DPU"):
        block_demand([mbconv((16, 8, 8), 16, 3, 1, 16, groups=2)], B4096)
    (tmp_path / "bad.json").write_text('{"kind": "dpu_model", "schema": 1, "coefficients": {"conv_cycles": -1}}')
    with pytest.raises(InputError, match="coefficients"):
        DpuModel.load(tmp_path / "bad.json")
    (tmp_path / "nets.csv").write_text("arch,ms\nx,1\n")
    with pytest.raises(InputError, match="unknown column 'latency_ms'"):
        calibrate_file(tmp_path / "nets.csv", B4096, tmp_path / "out.json", get_space("mnasnet"))
    rows = {p.key: {"board_ms": Cost(1.0)} for p in get_space("ofa-mbv3:resolution=128").primitives()[::9]}
    for batch, metric, reason in (
        (1, "latency_ms", "no column latency_ms; it has board_ms"),
        (8, "board_ms", "batch 8"),
    ):
        target = Target("board", "vart", precision="int8", batch=batch, origin="imported")
        CostTable(target, rows).save(tmp_path / "table.csv")
        with pytest.raises(InputError, match=reason):
            calibrate_file(tmp_path / "table.csv", B4096, tmp_path / "out.json", metric=metric)
    assert not (tmp_path / "out.json").exists()


def test_what_was_not_measured_is_that_of_the_model_that_ships(tmp_path: Path) -> None:
    """Never free: an MBConv beside a model fitted to plain convolutions alone."""
    plain, other = [conv((16, 8 * n, 8 * n), 16 * n) for n in range(1, 13)], mbconv((16, 32, 32), 24, 5, 2, 96)
    shipped = shipped_model(B4096)
    rows = {p.key: {"board_ms": Cost(float(t))} for p, t in zip(plain, simulate(plain, B4096).latency_ms, strict=True)}
    CostTable(Target("board", "vart", precision="int8", origin="imported"), rows).save(tmp_path / "table.csv")
    report = calibrate_file(tmp_path / "table.csv", B4096, tmp_path / "model.json", metric="board_ms")
    assumed = report.model.provenance["assumed"]
    assert assumed and all(report.model.coefficients[term] == shipped.coefficients[term] for term in assumed)
    found, expected = (simulate([other], B4096, model).latency_ms[0] for model in (report.model, shipped))
    assert found == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("name", target_names())
def test_every_target_simulates(name: str) -> None:
    target = get_target(name)
    model = shipped_model(target)
    result = simulate([conv((16, 8, 8), 16), mbconv((16, 32, 32), 24, 5, 2, 96, "h_swish", 24)], target)
    assert (result.latency_ms > 0).all()
    assert (result.energy_mj is None) == (model.energy is None)
    if name not in ("zcu102-b4096",):
        assert "no measurement of this DPU" in str(model.provenance)


def test_a_wider_dpu_is_faster() -> None:
    space = get_space("mnasnet")
    population = space.sample(10, 0)
    sizes = ["dpuczdx8g-b512", "dpuczdx8g-b1024", "dpuczdx8g-b2304", "dpuczdx8g-b4096"]
    times = [simulate((space, population), name).latency_ms for name in sizes]
    assert all((narrow > wide).all() for narrow, wide in pairwise(times))


@needs_data
def test_half_of_the_ultra96_blocks_predict_the_other_half() -> None:
    target = get_target("ultra96-b2304")
    report = parse([DATA / "vaitrace_ultra96"])
    demand = block_demand([Primitive.from_key(str(e.primitive)) for e in report.entries], target)
    latency = np.array([e.record.costs["latency_ms"].value for e in report.entries])
    errors = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(latency))
        train, test = order[:24], order[24:]
        predicted = fit(demand[train], latency[train], target).latency_ms(demand[test], target)
        errors.append(100 * np.mean(np.abs(predicted / latency[test] - 1)))
    assert np.mean(errors) < 10


def test_a_simulated_run_is_a_run_folder(tmp_path: Path) -> None:
    from hwnas.predict import read_measurements

    space = get_space("mnasnet")
    report = simulate_run(space, B4096, tmp_path / "run", networks=40, seed=3)
    assert (report.primitives, report.networks, report.left_out) == (len(space.primitives()), 40, {})
    table = CostTable.load(tmp_path / "run")
    assert table.target.origin == "simulated"
    data = read_measurements(tmp_path / "run", space, "energy_mj")
    assert len(data.values) == 40
    assert data.target is not None and data.target["origin"] == "simulated"
    expected = simulate((space, data.population), B4096).energy_mj
    np.testing.assert_allclose(data.values, expected)
    fbnet = simulate_run(get_space("fbnet"), B4096, tmp_path / "fbnet", networks=3)
    assert len(fbnet.left_out) == 24
    archs = pyarrow.parquet.read_table(tmp_path / "fbnet" / "networks.parquet")["arch"].to_pylist()
    assert len(archs) == 3 and not any("_g2" in arch for arch in archs)
    with pytest.raises(InputError, match="asked for"):
        simulate_run(get_space("nasbench-macro"), B4096, tmp_path / "macro", networks=7000)
    assert not (tmp_path / "macro").exists()


def test_a_simulated_run_takes_the_place_of_its_like_alone(tmp_path: Path) -> None:
    space = get_space("nasbench-macro")
    simulate_run(space, B4096, tmp_path, networks=20)
    with pytest.raises(InputError, match="another space or DPU"):
        simulate_run(get_space("fbnet"), B4096, tmp_path)
    with pytest.raises(InputError, match="another space or DPU"):
        simulate_run(space, "zcu102-b1024", tmp_path)
    assert pyarrow.parquet.read_table(tmp_path / "networks.parquet").num_rows == 20
    simulate_run(space, B4096, tmp_path)
    assert not (tmp_path / "networks.parquet").exists()
    (tmp_path / "run.json").write_text('{"kind": "profile_run", "schema": 1}')
    for kept in ("run.json", "table.csv"):
        before = (tmp_path / kept).read_bytes()
        with pytest.raises(InputError, match=kept):
            simulate_run(space, B4096, tmp_path)
        assert (tmp_path / kept).read_bytes() == before
        (tmp_path / "run.json").unlink(missing_ok=True)


def test_a_batchnorm_by_itself_is_a_depthwise_convolution() -> None:
    small, large = (Primitive.of("bn_relu", (64, side, side)) for side in (8, 64))
    times = simulate([small, large], B4096).latency_ms
    assert 0 < times[0] < times[1]


@pytest.mark.parametrize("line", ["clock_mhz: -300", "clock_mhz: 0", "pixel_parallel: 0", "bank_depth: -1"])
def test_a_dpu_that_cannot_be(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: zcu102-b4096\n{line}\n")
    with pytest.raises(InputError, match=line.split(":")[0]):
        get_target(tmp_path / "mine.yaml")
