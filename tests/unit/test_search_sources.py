"""Where accuracies and costs come from."""

import json
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hwnas.core.errors import DomainError, InputError, MissingCostError, ParseError, UnknownNameError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.parse.ofa_lookup import NOTE10, note10_key
from hwnas.predict import predict, predictors
from hwnas.predict.store import save_predictor
from hwnas.search import Source, accuracy_source, cost_sources, make_problem
from hwnas.search.additive import Additive, Factor
from hwnas.search.sources import open_sources
from hwnas.spaces import SearchSpace, get_space

OFA = "ofa-mbv3:width=1.2,resolution=160/176"
SMALL = "nasbench-macro"


def cost_table(space: SearchSpace, path: Path, **columns: float) -> Path:
    rows = {
        primitive.key: {name: Cost(scale * (1 + primitive.macs / 1e6)) for name, scale in columns.items()}
        for primitive in space.primitives()
    }
    CostTable(Target("board", "tvm"), rows).save(path)
    return path


def test_bounds_that_contradict_each_other_are_refused() -> None:
    source = Source("toy", "accuracy", lambda rows: rows.sum(1))
    bounds = {"max": {"macs_m": 20.0}, "min": {"macs_m": 30.0}}
    with pytest.raises(InputError, match="macs_m cannot be 30 or more and 20 or less"):
        make_problem(SMALL, source, **bounds)
    assert len(make_problem(SMALL, source, max={"macs_m": 30.0}, min={"macs_m": 20.0}).constraints) == 2


def ofa_file(path: Path, inputs: int = 128, seed: int = 0) -> Path:
    """An accuracy predictor in Once-for-All's format, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    widths = [inputs, 400, 400, 400, 1]
    state = {}
    for layer, (n_in, n_out) in zip((0, 2, 4, 6), pairwise(widths), strict=True):
        state[f"{layer}.weight"] = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        state[f"{layer}.bias"] = torch.randn(n_out, generator=generator)
    torch.save(state, path)
    return path


def by_hand(path: Path, text: str) -> float:
    """What Once-for-All's predictor says of one architecture: one-hot inputs, then its layers in PyTorch."""
    arch = json.loads(text)
    x = torch.zeros(128)
    for block in range(20):
        if block % 4 < arch["d"][block // 4]:
            x[3 * block + (3, 5, 7).index(arch["ks"][block])] = 1
            x[60 + 3 * block + (3, 4, 6).index(arch["e"][block])] = 1
    x[120 + (arch["r"] - 112) // 16] = 1
    state = torch.load(path, weights_only=True, map_location="cpu")
    for layer in (0, 2, 4):
        x = torch.relu(state[f"{layer}.weight"] @ x + state[f"{layer}.bias"])
    return float(state["6.weight"] @ x + state["6.bias"])


def note10_files(folder: Path, space: SearchSpace) -> Path:
    folder.mkdir()
    for index, resolution in enumerate(space.genes[-1].choices):
        own = get_space(f"ofa-mbv3:width=1.2,resolution={resolution}")
        keys = sorted({note10_key(primitive) or "" for primitive in own.primitives()})
        entries = {key: {"count": 3, "mean": (index + 1) * (1.0 + 0.01 * i)} for i, key in enumerate(keys)}
        (folder / f"{resolution}_lookup_table.yaml").write_text(yaml.safe_dump(entries))
    return folder


@lru_cache
def read_yaml(path: Path) -> dict:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)


def note10_by_hand(folder: Path, text: str) -> float:
    """A network's latency as Once-for-All adds it up."""
    arch = json.loads(text)
    table = read_yaml(folder / f"{arch['r']}_lookup_table.yaml")
    side = (arch["r"] + 1) // 2
    size, channels = f"{side}x{side}", 24
    total = table[f"Conv-input:{arch['r']}x{arch['r']}x3-output:{size}x24"]["mean"]
    first = f"expanded_conv-input:{size}x24-output:{size}x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0"
    total += table[first]["mean"]
    for block in range(20):
        stage, slot = divmod(block, 4)
        if slot >= arch["d"][stage]:
            continue
        out, stride = (32, 48, 96, 136, 192)[stage], (2, 2, 2, 1, 2)[stage] if slot == 0 else 1
        after = (side - 1) // stride + 1
        total += table[
            f"expanded_conv-input:{side}x{side}x{channels}-output:{after}x{after}x{out}"
            f"-expand:{round(channels * arch['e'][block])}-kernel:{arch['ks'][block]}-stride:{stride}"
            f"-idskip:{int(slot > 0)}-se:{int(stage in (1, 3, 4))}-hs:{int(stage >= 2)}"
        ]["mean"]
        channels, side = out, after
    total += table[f"Conv_1-input:{side}x{side}x192-output:{side}x{side}x1152"]["mean"]
    total += table[f"AvgPool2D-input:{side}x{side}x1152-output:1x1x1152"]["mean"]
    total += table["Conv_2-input:1x1x1152-output:1x1x1536"]["mean"]
    return total + table["Logits-input:1x1x1536-output:1000"]["mean"]


# additive costs


@pytest.mark.parametrize("spec", [OFA, SMALL, "nasbench201", "mnasnet", "fbnet:variant=cifar"])
def test_a_sum_over_blocks_and_its_ends_are_exact(spec: str) -> None:
    space = get_space(spec)
    values = np.random.default_rng(0).random(len(space.primitives()))
    additive = Additive.of_primitives(space, values)
    population = space.sample(500, 1)
    np.testing.assert_allclose(additive(population), space.total(values, population), rtol=1e-12)
    assert additive.extremes is not None
    low, high = additive.extremes
    assert low <= additive(population).min() and high >= additive(population).max()


def test_the_ends_equal_those_of_the_whole_space() -> None:
    space = get_space(SMALL)
    values = np.random.default_rng(0).random(len(space.primitives()))
    everything = np.indices(space.choices.tolist(), dtype=np.int16).reshape(len(space.choices), -1).T
    totals = space.total(values, everything)
    assert Additive.of_primitives(space, values).extremes == pytest.approx((totals.min(), totals.max()))


def test_factors_too_entangled_to_eliminate_give_no_ends() -> None:
    pairs = [Factor((i, j), np.zeros((40, 40))) for i in range(8) for j in range(i + 1, 8)]
    assert Additive(pairs).extremes is None


# Once-for-All's published models


def test_the_accuracy_predictor_equals_pytorch(tmp_path: Path) -> None:
    path, space = ofa_file(tmp_path / "acc.pth"), get_space(OFA)
    population = space.sample(700, 0)
    found = accuracy_source(f"ofa:{path}", space).predict(population)
    for index in (0, 1, 350, 699):
        assert found[index] == pytest.approx(by_hand(path, space.format(population[index])), abs=1e-5)


def test_the_published_predictor_equals_pytorch(reference_data: Path) -> None:
    path, space = reference_data / "ofa_imagenet" / "acc_predictor.pth", get_space(OFA)
    population = space.sample(20, 0)
    expected = [by_hand(path, space.format(row)) for row in population]
    np.testing.assert_allclose(accuracy_source(f"ofa:{path}", space).predict(population), expected, atol=1e-6)


def test_note10_sums_equal_once_for_alls(tmp_path: Path) -> None:
    space = get_space(OFA)
    folder = note10_files(tmp_path / "note10", space)
    check_note10(folder, space)


def test_published_note10_sums_equal_once_for_alls(reference_data: Path) -> None:
    check_note10(reference_data / "ofa_imagenet" / "note10", get_space("ofa-mbv3:width=1.2,resolution=160/164/212/224"))


def check_note10(folder: Path, space: SearchSpace) -> None:
    source = cost_sources([f"note10:{folder}"], space)["latency_ms"]
    population = space.sample(60, 0)
    expected = [note10_by_hand(folder, space.format(row)) for row in population]
    np.testing.assert_allclose(source.predict(population), expected, rtol=0, atol=1e-9)
    assert source.target == NOTE10


def test_a_block_without_a_latency_is_an_error(tmp_path: Path) -> None:
    folder = note10_files(tmp_path / "note10", get_space(OFA))
    path = folder / "176_lookup_table.yaml"
    entries = yaml.safe_load(path.read_text())
    entries.pop(next(key for key in entries if key.startswith("expanded_conv") and "kernel:7" in key))
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(MissingCostError, match="1 of the primitives"):
        cost_sources([f"note10:{folder}"], get_space(OFA))


BROKEN = {"not yaml": "a: [", "a list": "- 1", "no mean": "Conv-input:160x160x3-output:80x80x24: {count: 1}"}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_latency_table_names_its_file(tmp_path: Path, text: str) -> None:
    folder = note10_files(tmp_path / "note10", get_space(OFA))
    (folder / "160_lookup_table.yaml").write_text(text)
    with pytest.raises(ParseError, match="160_lookup_table"):
        cost_sources([f"note10:{folder}"], get_space(OFA))


def test_a_resolution_without_a_table_is_named(tmp_path: Path) -> None:
    folder = note10_files(tmp_path / "note10", get_space(OFA))
    with pytest.raises(InputError, match=r"resolution 208 .* 160, 176"):
        cost_sources([f"note10:{folder}"], get_space("ofa-mbv3:width=1.2,resolution=208"))


def test_another_width_has_no_latencies(tmp_path: Path) -> None:
    folder = note10_files(tmp_path / "note10", get_space(OFA))
    with pytest.raises(MissingCostError):
        cost_sources([f"note10:{folder}"], get_space("ofa-mbv3:resolution=160"))


def bad_pickle(path: Path) -> Path:
    torch.save({"0.weight": Path}, path)
    return path


def not_finite(path: Path) -> Path:
    state = torch.load(ofa_file(path), weights_only=True)
    state["2.bias"][3] = float("nan")
    torch.save(state, path)
    return path


def garbage(path: Path) -> Path:
    path.write_bytes(b"not a checkpoint")
    return path


@pytest.mark.parametrize("make", [bad_pickle, not_finite, garbage, lambda path: ofa_file(path, inputs=100)])
def test_a_file_that_is_no_accuracy_predictor_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "acc.pth")
    with pytest.raises(InputError, match=r"acc\.pth") as caught:
        accuracy_source(f"ofa:{path}", get_space(OFA))
    assert "\n" not in str(caught.value)


def test_the_accuracy_predictor_knows_its_space_and_resolutions(tmp_path: Path) -> None:
    path = ofa_file(tmp_path / "acc.pth")
    with pytest.raises(InputError, match="ofa-mbv3"):
        accuracy_source(f"ofa:{path}", get_space("fbnet"))
    with pytest.raises(InputError, match=r"resolutions .* not 164"):
        accuracy_source(f"ofa:{path}", get_space("ofa-mbv3:width=1.2,resolution=160/164"))
    for other in ("width=1.0", "width=1.2,num_classes=10", "width=1.2,variant=cifar"):
        with pytest.raises(InputError, match="on ImageNet, not of"):
            accuracy_source(f"ofa:{path}", get_space(f"ofa-mbv3:resolution=160,{other}"))


# tables and predictors


def test_a_measured_table_answers_for_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arch,top1_acc\n00000000,70\n00000001,80\n00000001,82\n11111111,\n")
    source = accuracy_source(f"table:{path}#top1_acc", get_space(SMALL))
    archs = get_space(SMALL).parse_many(["00000001", "00000000", "11111111", "22222222"])
    np.testing.assert_array_equal(source.predict(archs), [81, 70, np.nan, np.nan])
    assert source.known is not None and len(source.known) == 2


def test_a_complete_table_has_no_unknown_rows(tmp_path: Path) -> None:
    space = get_space(SMALL)
    everything = np.indices(space.choices.tolist(), dtype=np.int16).reshape(len(space.choices), -1).T
    table = {"arch": [space.format(row) for row in everything], "board_ms": np.arange(len(everything)) + 1.0}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = cost_sources([f"table:{tmp_path / 't.parquet'}#board_ms"], space)["latency_ms"]
    assert source.known is None
    np.testing.assert_array_equal(source.predict(everything[::-1]), np.arange(len(everything))[::-1] + 1.0)


def test_a_cost_table_gives_a_cost_for_each_of_its_metrics(tmp_path: Path) -> None:
    space = get_space(SMALL)
    path = cost_table(space, tmp_path / "t.csv", latency_ms=1.0, energy_mj=2.0)
    costs = cost_sources([str(path)], space)
    population = space.sample(10, 0)
    assert list(costs) == ["latency_ms", "energy_mj"]
    np.testing.assert_allclose(costs["energy_mj"].predict(population), 2 * costs["latency_ms"].predict(population))
    assert costs["latency_ms"].target == Target("board", "tvm")
    assert list(cost_sources([f"{path}#energy_mj"], space)) == ["energy_mj"]


def test_a_peak_is_no_sum_of_blocks_and_one_column_stands_for_a_quantity(tmp_path: Path) -> None:
    space = get_space(SMALL)
    columns = {"latency_ms": 1.0, "energy_mj": 2.0, "above_idle_energy_mj": 1.5, "memory_mib": 3.0}
    path = cost_table(space, tmp_path / "t.csv", **columns)
    assert list(cost_sources([str(path)], space)) == ["latency_ms", "energy_mj"]
    above, total = (cost_sources([f"{path}#{name}energy_mj"], space)["energy_mj"] for name in ("above_idle_", ""))
    population = space.sample(10, 0)
    np.testing.assert_allclose(above.predict(population), 0.75 * total.predict(population))
    with pytest.raises(InputError, match="memory_mib of a network is no sum"):
        cost_sources([f"{path}#memory_mib"], space)
    with pytest.raises(InputError, match="memory_mib of a network is no sum"):
        predict(path, space.sample(2, 0), space=space, metric="memory_mib")


def test_a_throughput_is_made_of_latencies(tmp_path: Path) -> None:
    space = get_space(SMALL)
    path = cost_table(space, tmp_path / "t.csv", latency_ms=1.0, throughput_ips=1e3)
    population = space.sample(10, 0)
    assert list(cost_sources([str(path)], space)) == ["latency_ms"], "rates do not add up"
    made = cost_sources([f"{path}#throughput_ips"], space)["throughput_ips"]
    latency = cost_sources([str(path)], space)["latency_ms"]
    np.testing.assert_allclose(made.predict(population), 1e3 / latency.predict(population))
    archs = [space.format(row) for row in population]
    np.testing.assert_allclose(predict(path, archs, space=space).value, latency.predict(population))
    own = predict(path, archs, space=space, metric="throughput_ips").value
    np.testing.assert_allclose(own, made.predict(population))


def test_costs_of_two_devices_are_named_apart(tmp_path: Path) -> None:
    space = get_space(SMALL)
    one = cost_table(space, tmp_path / "one.csv", latency_ms=1.0)
    two = cost_table(space, tmp_path / "two.csv", latency_ms=3.0)
    assert list(cost_sources([f"cpu={one}", f"gpu={two}"], space)) == ["cpu.latency_ms", "gpu.latency_ms"]
    with pytest.raises(InputError, match="two costs are called latency_ms"):
        cost_sources([str(one), str(two)], space)


def test_counts_need_no_source() -> None:
    space = get_space(SMALL)
    population = space.sample(20, 0)
    costs = cost_sources(["macs_m", "params_m"], space)
    np.testing.assert_allclose(costs["macs_m"].predict(population), space.macs(population) / 1e6)
    np.testing.assert_allclose(costs["params_m"].predict(population), space.parameters(population) / 1e6)


@pytest.fixture
def latency_model(tmp_path: Path) -> Path:
    space = get_space("ofa-mbv3:resolution=128/160/192")
    population = space.sample(60, 0)
    noise = np.random.default_rng(0).normal(1, 0.02, 60)
    model = predictors.get("ridge")(space).fit(population, space.macs(population) / 1e7 * noise)
    target = Target("laptop", "onnxruntime", "1.30").to_json()
    save_predictor(model, tmp_path / "model", {"target": target})
    return tmp_path / "model"


def test_a_predictor_serves_spaces_with_some_of_its_choices(latency_model: Path) -> None:
    whole, part = get_space("ofa-mbv3:resolution=128/160/192"), get_space("ofa-mbv3:resolution=192/160")
    population = part.sample(30, 0)
    same = whole.parse_many([part.format(row) for row in population])
    of_whole, of_part = (open_sources(str(latency_model), space)[0] for space in (whole, part))
    np.testing.assert_array_equal(of_part.predict(population), of_whole.predict(same))
    low, high = of_part.interval(population, 0.9)  # type: ignore[misc]
    assert (low < of_part.predict(population)).all() and (high > of_part.predict(population)).all()
    assert of_part.target == Target("laptop", "onnxruntime", "1.30")


@pytest.mark.parametrize("spec", ["ofa-mbv3:resolution=224", "ofa-mbv3:width=1.2,resolution=160", "fbnet"])
def test_a_predictor_of_another_space_is_refused(latency_model: Path, spec: str) -> None:
    with pytest.raises(DomainError, match=r"ofa-mbv3:resolution=128/160/192"):
        open_sources(str(latency_model), get_space(spec))


# what cannot be used


def test_a_source_that_is_none_says_what_could_be() -> None:
    with pytest.raises(InputError, match=r"no source .* at nowhere; .* note10:.*, macs_m"):
        open_sources("nowhere", get_space(SMALL))


def test_costs_and_accuracies_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arch,top1_acc\n00000000,70\n00000001,80\n")
    with pytest.raises(InputError, match="not one accuracy"):
        accuracy_source("macs_m", get_space(SMALL))
    with pytest.raises(InputError, match="no cost"):
        cost_sources([f"table:{path}#top1_acc"], get_space(SMALL))
    with pytest.raises(InputError, match="names no column"):
        cost_sources([f"table:{path}"], get_space(SMALL))


BAD = {
    "misspelt": ({"max": {"latncy_ms": 3}}, UnknownNameError, "did you mean 'latency_ms'"),
    "no number": ({"max": {"latency_ms": float("nan")}}, InputError, "finite"),
    "confidence": ({"max": {"latency_ms": 3}, "confidence": 0.4}, InputError, "above 0.5"),
    "no interval": ({"max": {"latency_ms": 3}, "confidence": 0.9}, InputError, "no prediction interval"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_constraint_that_cannot_be_used_is_refused(tmp_path: Path, case: tuple[dict, type, str]) -> None:
    space = get_space(OFA)
    options, error, match = case
    costs = [str(cost_table(space, tmp_path / "t.csv", latency_ms=1.0))]
    with pytest.raises(error, match=match):
        make_problem(space, f"ofa:{ofa_file(tmp_path / 'acc.pth')}", costs, **options)


def test_a_bare_quantity_names_the_only_cost_that_has_it(tmp_path: Path) -> None:
    space = get_space(OFA)
    path = cost_table(space, tmp_path / "t.csv", latency_ms=1.0)
    accuracy = f"ofa:{ofa_file(tmp_path / 'acc.pth')}"
    problem = make_problem(space, accuracy, [f"cpu={path}"], max={"latency_ms": 9, "params_m": 5})
    assert [constraint.quantity for constraint in problem.constraints] == ["cpu.latency_ms", "params_m"]
    with pytest.raises(InputError, match="ambiguous"):
        make_problem(space, accuracy, [f"cpu={path}", f"gpu={path}"], max={"latency_ms": 9})
