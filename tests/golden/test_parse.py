"""Small logs in the real formats: what they say, and what makes them refused."""

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwnas.core.errors import InputError, ParseError
from hwnas.core.table import CostTable
from hwnas.parse import ColumnMapping, parse
from hwnas.predict import read_measurements
from hwnas.spaces import Primitive, get_space

LOGS = Path(__file__).parent / "logs"
BLOCK = "ResidualBlock-in_32x8x8-out_32-k_5-e_3-s_1-act_relu-use_se_False"
KEY = "1:mbconv[32x8x8] act=relu kernel=5 mid=96 out=32 se=0 stride=1"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    shutil.copytree(LOGS, tmp_path / "logs")
    return tmp_path / "logs"


def test_vaitrace_gives_the_median_of_the_events(logs: Path, tmp_path: Path) -> None:
    report = parse([logs / "vaitrace"], out=tmp_path / "table.csv")
    assert report.table is not None
    cost = report.table.rows[KEY]["latency_ms"]
    assert (cost.value, cost.n, cost.verdict) == (pytest.approx(0.5025), 6, "imported")
    assert cost.low <= cost.value <= cost.high
    record = report.entries[0].record
    assert record.details["workload_gop"] == 0.020
    assert record.details["dpu_efficiency_percent"] == 9.0
    assert record.details["ddr_read_mb_s"] == pytest.approx(300.5)
    assert record.flags == ("outliers",)
    target = report.table.target
    assert (target.device, target.runtime_version, target.origin) == (
        "DPUCZDX8G_ISA1_B1024_0101000016010402",
        "3.5",
        "imported",
    )
    assert CostTable.load(tmp_path / "table.csv").rows[KEY]["latency_ms"] == cost
    assert "0.5025" in (tmp_path / "table.records.csv").read_text()


def test_the_traces_folder_is_read_once_whichever_file_is_named(logs: Path) -> None:
    for name in ("vart_trace.csv", "profile_summary.csv"):
        assert len(parse([logs / "vaitrace" / BLOCK / name]).entries) == 1


def test_rows_of_several_cores_are_one_kernel(logs: Path) -> None:
    path = logs / SUMMARY
    row = next(line for line in path.read_text().splitlines() if line.startswith("subgraph"))
    cells = row.split(",")
    split = [
        ",".join([cells[0], "4", "DPUCZDX8G_1:batch-1", "0.500", "0.537", "0.640", *cells[6:]]),
        ",".join([cells[0], "2", "DPUCZDX8G_2:batch-1", "0.502", "0.5035", "0.510", *cells[6:]]),
    ]
    path.write_text(path.read_text().replace(row, "\n".join(split)))
    assert parse([logs / "vaitrace"]).entries[0].record.costs["latency_ms"].n == 6
    path.write_text(path.read_text().replace("DPUCZDX8G_2", "DPUCZDX8G_1"))
    with pytest.raises(ParseError, match="twice for one core"):
        parse([logs / "vaitrace"])


def test_vaitrace_text(logs: Path) -> None:
    record = parse([logs / "vaitrace.txt"]).entries[0].record
    assert record.costs["latency_ms"].value == pytest.approx(3.1)
    assert record.details["dpu_subgraphs"] == 2
    assert record.details["workload_gop"] == pytest.approx(1.1)
    assert "mean_only" in record.flags


def test_the_text_of_vaitrace_means_several_cores(logs: Path) -> None:
    lines = (logs / "vaitrace.txt").read_text().splitlines(keepends=True)
    second = [line.replace("G_1:0", "G_2:0").replace("| 2.500 |", "| 2.520 |") for line in lines if "G_1:0" in line]
    (logs / "vaitrace.txt").write_text("".join([*lines[:6], *second, *lines[6:]]))
    record = parse([logs / "vaitrace.txt"]).entries[0].record
    assert record.costs["latency_ms"].value == pytest.approx(2.51 + 0.6)
    assert record.details["dpu_subgraphs"] == 2 and record.details["workload_gop"] == pytest.approx(1.1)
    lines[5] = lines[5].replace("G_1:0", "G_2:0")
    (logs / "vaitrace.txt").write_text("".join(lines))
    assert parse([logs / "vaitrace.txt"]).entries[0].record.costs["latency_ms"].value == pytest.approx(3.1)


def test_xdputil_benchmark(logs: Path) -> None:
    record = parse([logs / "benchmark.log"]).entries[0].record
    assert record.subject == "mnasnet_07"
    assert record.costs["throughput_ips"].value == 124.988
    assert record.threads == 2


def test_rails_are_counted_once_and_the_window_is_integrated(logs: Path) -> None:
    record = parse([logs / "power" / "NET.csv"]).entries[0].record
    idle = 0.85 * (1000 + 300 + 2000 + 50 + 60) + 1.2 * 200 + 3.3 * 30
    assert record.details["idle_power_mw"] == pytest.approx(idle)
    assert record.details["run_energy_mj"] == pytest.approx(0.45 * (idle + 850), rel=0.01)
    assert record.details["run_energy_above_idle_mj"] == pytest.approx(0.45 * 850, rel=0.01)
    assert "VCCOPS_mw" not in record.details


def test_energy_an_inference_from_the_samplers_marks(logs: Path) -> None:
    record = parse([logs / "power.jsonl"]).entries[0].record
    assert record.subject == "m0001"
    assert record.costs["energy_mj"].value == pytest.approx(0.4 * 3600 / 100, rel=0.02)
    assert record.costs["above_idle_energy_mj"].value == pytest.approx(0.4 * 1000 / 100, rel=0.04)


def test_kria_platformstats(logs: Path) -> None:
    record = parse([logs / "kria.log"]).entries[0].record
    assert record.details["mean_power_mw"] == 3500


def test_any_rail_csv_by_mapping(tmp_path: Path) -> None:
    rows = [f"{i * 20},{1.5 if 10 <= i <= 30 else 1.0},0.5" for i in range(50)]
    (tmp_path / "export.csv").write_text("\n".join(["Time (ms),VCCINT (W),VCCBRAM (W)", *rows]) + "\n")
    mapping = ColumnMapping(
        time="Time (ms)",
        time_unit="ms",
        rails={"VCCINT": "VCCINT (W)", "VCCBRAM": "VCCBRAM (W)"},
        power_unit="W",
        start=200,
        end=600,
        inferences=40,
    )
    record = parse([tmp_path / "export.csv"], mapping=mapping).entries[0].record
    assert record.costs["energy_mj"].value == pytest.approx(0.4 * 2000 / 40)
    assert record.costs["above_idle_energy_mj"].value == pytest.approx(0.4 * 500 / 40)
    with pytest.raises(ParseError, match="no column 'Vccint'"):
        parse([tmp_path / "export.csv"], mapping=mapping.model_copy(update={"rails": {"VCCINT": "Vccint"}}))


def test_a_csv_of_networks_in_another_countrys_figures(tmp_path: Path) -> None:
    """Semicolons, decimal commas, and whole networks by their notation: what a predictor is fitted on."""
    space = get_space("nasbench-macro")
    population = space.sample(40, 0)
    times = 1e3 + space.macs(population) / 1e4
    lines = [f"{space.format(row)};{time:.3f}".replace(".", ",") for row, time in zip(population, times, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["Netz;Zeit (us)", *lines]) + "\n")
    mapping = ColumnMapping(
        delimiter=";", decimal=",", subject="Netz", metrics={"latency_ms": "Zeit (us)"}, device="Pi", threads=4
    )
    report = parse([tmp_path / "mine.csv"], space=space, mapping=mapping, out=tmp_path / "board.csv")
    assert report.table is None and not report.unmatched and report.entries[0].record.threads == 4
    data = read_measurements(tmp_path / "board.csv", space, "latency_ms")
    assert np.allclose(data.values, times / 1e3, rtol=1e-6) and (data.population == space.canonical(population)).all()
    with pytest.raises(ParseError, match=r"has no column .*with the mapping's delimiter '\\t' it has 'Netz;Zeit"):
        parse([tmp_path / "mine.csv"], mapping=mapping.model_copy(update={"delimiter": "\t"}))
    (tmp_path / "mine.csv").write_text("Netz;Zeit (us)\n00000000;1.234\n")
    with pytest.raises(ParseError, match=r"mine.csv:2: .*'1.234', with a point"):
        parse([tmp_path / "mine.csv"], mapping=mapping)
    with pytest.raises(InputError, match="both the delimiter and the decimal"):
        parse([tmp_path / "mine.csv"], mapping=mapping.model_copy(update={"delimiter": ","}))


def test_any_cost_csv_by_mapping(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(f"block,ms\n{KEY},1.25\n")
    report = parse([tmp_path / "mine.csv"], mapping=ColumnMapping(subject="block", metrics={"latency_ms": "ms"}))
    assert report.table is not None
    assert report.table.costs([Primitive.from_key(KEY)], "latency_ms")[0] == 1.25


def _replace(name: str, old: str, new: str, times: int = 1) -> Callable[[Path], Path]:
    def change(logs: Path) -> Path:
        path = logs / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, times))
        return path

    return change


def _cut(name: str, keep: float) -> Callable[[Path], Path]:
    def change(logs: Path) -> Path:
        path = logs / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return change


def _write(name: str, data: bytes) -> Callable[[Path], Path]:
    def change(logs: Path) -> Path:
        path = logs / name
        path.write_bytes(data)
        return path

    return change


TRACE, SUMMARY = f"vaitrace/{BLOCK}/vart_trace.csv", f"vaitrace/{BLOCK}/profile_summary.csv"
META, PROFILE = f"vaitrace/{BLOCK}/meta.json", f"vaitrace/{BLOCK}/vitis_ai_profile.csv"
BROKEN = {
    "gzip pickle": (_write(f"vaitrace/{BLOCK}/run.xat", b"\x1f\x8b\x08\0"), "gzip"),
    "bare pickle": (_write("power.jsonl", b"\x80\x04\x95abc"), "pickle"),
    "trace cut in a line": (_cut(TRACE, 0.9), "cut short"),
    "trace empty": (_write(TRACE, b""), "empty"),
    "trace line dropped": (_replace(TRACE, "4,3,", "6,3,"), "lines are missing"),
    "trace of other kernel": (
        _replace(TRACE, "2,subgraph_block__ret_9", "2,subgraph_other"),
        "files of different runs",
    ),
    "trace in other unit": (_replace(TRACE, "Resolution,ms", "Resolution,us"), "expected ms"),
    "trace time backwards": (_replace(TRACE, "4,3,101", "4,3,99"), "backwards"),
    "trace of other process": (_replace(TRACE, "PID,4242", "PID,4243"), "process 4242"),
    "stated rate": (_replace(TRACE, ",39.84,", ",79.84,", 2), "contradicts the stated"),
    "summary runs": (_replace(SUMMARY, "_9,6,", "_9,7,"), "7 runs stated, 6"),
    "summary average": (_replace(SUMMARY, ",0.526,", ",0.536,"), "average 0.536 ms stated"),
    "summary row cut": (_replace(SUMMARY, "0.250,520.000,", "0.250,"), "cells"),
    "summary efficiency": (_replace(SUMMARY, "9.000", "900.0"), "impossible"),
    "summary without rows": (_cut(SUMMARY, 0.5), "cut short"),
    "summary not a number": (_replace(SUMMARY, ",0.020,", ",nan,"), "finite"),
    "other board": (_replace(META, "B1024_0101000016010402", "B4096_0101000016010407"), "says the board holds"),
    "meta not json": (_cut(META, 0.5), "JSON"),
    "bandwidth row cut": (_replace(PROFILE, "900.20,98.5,", "900.20,"), "cells expected"),
    "checksum": (_write(f"vaitrace/{BLOCK}/md5sum.txt", b"xyz\n"), "MD5"),
    "query cut": (_cut("vaitrace/FPGA_info.txt", 0.6), "xdputil query"),
    "text cut": (_cut("vaitrace.txt", 0.7), "cells|cut short"),
    "text times": (_replace("vaitrace.txt", "2.500 | 2.400", "2.500 | 2.900"), "contradict"),
    "benchmark rate": (_replace("benchmark.log", "124.988", "134.988"), "not the stated"),
    "benchmark threads": (_replace("benchmark.log", "650 frames", "651 frames"), "1251 frames"),
    "benchmark cut": (_cut("benchmark.log", 0.6), "cut short"),
    "run not covered": (_replace("power/NET.csv.time", ";1000.71", ";1001.71"), "do not cover"),
    "run of no length": (_replace("power/NET.csv.time", ";1000.71", ";1000.26"), "before it starts"),
    "totals": (_replace("power/NET.csv", "5;1000.125000000;1345", "5;1000.125000000;1445"), "rails sum to"),
    "rails of another run": (_replace("power/NET.csv.raw_currents", "1000.125", "1000.126"), "(different|another) run"),
    "rails cut": (_cut("power/NET.csv.raw_voltages", 0.8), "cut short"),
    "sample missing": (_replace("power/NET.csv", "\n7;", "\n8;"), "lines are missing"),
    "no end mark": (_replace("power.jsonl", '{"end": 60}\n', ""), "cut short"),
    "stop without start": (_replace("power.jsonl", '"start"', '"begin"'), "no start"),
    "kria contradiction": (_replace("kria.log", "4100 mW", "410 mW"), "contradicts"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_log_is_refused_with_its_file(logs: Path, name: str) -> None:
    change, reason = BROKEN[name]
    path = change(logs)
    top = logs / path.relative_to(logs).parts[0]
    with pytest.raises(ParseError, match=reason) as caught:
        parse([top if top.name == "vaitrace" else path])
    assert str(logs) in caught.value.path
    assert "\n" not in str(caught.value)


def test_two_boards_are_not_one_table(logs: Path) -> None:
    folder = logs / "vaitrace" / BLOCK
    other = folder.with_name(BLOCK.replace("k_5", "k_3"))
    shutil.copytree(folder, other)
    (logs / "vaitrace" / "FPGA_info.txt").unlink()
    meta = other / "meta.json"
    meta.write_text(meta.read_text().replace("B1024_0101000016010402", "B4096_0101000016010407"))
    with pytest.raises(ParseError, match="one table is of one board"):
        parse([logs / "vaitrace"])


def test_keep_going_lists_what_is_refused(logs: Path) -> None:
    _cut("benchmark.log", 0.6)(logs)
    report = parse([logs], keep_going=True)
    assert [Path(error.path).name for error in report.refused] == ["benchmark.log"]
    assert report.table is not None
    with pytest.raises(ParseError, match=r"benchmark\.log"):
        parse([logs])


def test_paths_without_logs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no log at"):
        parse([tmp_path / "none"])
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(InputError, match="known formats"):
        parse([tmp_path])


@pytest.mark.parametrize("name", ["vaitrace", "vaitrace.txt", "benchmark.log", "power", "power.jsonl", "kria.log"])
def test_mutated_logs_are_read_or_refused(logs: Path, name: str) -> None:
    rng = random.Random(7)
    source = [p for p in sorted((logs / name).rglob("*") if (logs / name).is_dir() else [logs / name]) if p.is_file()]
    for _ in range(60):
        victim = rng.choice(source)
        original = victim.read_bytes()
        victim.write_bytes(_mutate(original, rng))
        try:
            report = parse([logs / name])
            values = [cost.value for entry in report.entries for cost in entry.record.costs.values()]
            assert all(math.isfinite(value) and value >= 0 for value in values)
        except ParseError as error:
            assert str(error)
        victim.write_bytes(original)


def _mutate(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    row = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return b"\n".join(lines[:row] + lines[row + 1 :])
    if kind == 2:
        return b"\n".join([*lines[:row], lines[row], *lines[row:]])
    if kind == 3:
        position = rng.randrange(len(data))
        return data[:position] + bytes([data[position] ^ (1 << rng.randrange(8))]) + data[position + 1 :]
    if kind == 4:
        return data.decode().encode(rng.choice(["utf-16", "utf-32", "cp037"]))
    cells = lines[row].split(b",")
    rng.shuffle(cells)
    return b"\n".join([*lines[:row], b",".join(cells), *lines[row + 1 :]])


def test_interval_of_a_median_covers_it() -> None:
    from hwnas.parse.base import median_cost

    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        cost = median_cost(rng.exponential(size=101))
        covered += cost.low <= math.log(2) <= cost.high
    assert 0.92 <= covered / 400 <= 0.99
