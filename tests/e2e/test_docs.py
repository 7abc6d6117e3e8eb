"""What the documentation shows runs as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwnas.cli.shell import app
from hwnas.core.config import load_config
from hwnas.report import read_figures
from hwnas.spaces import get_space
from hwnas.train import NetworkConfig, OneShotConfig, SupernetConfig
from hwnas.train.config import RunConfig
from hwnas.train.oneshot import one_shot

DOCS = Path(__file__).parents[2] / "docs"


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.S)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "best.onnx").stat().st_size > 100_000
    figures = read_figures(tmp_path / "report.html")
    assert {"front-latency-ms", "certificates-latency-ms", "predicted-latency-ms"} <= set(figures)
    assert figures["predicted-latency-ms"]["data"][0]["x"]


def test_the_configuration_shown_is_accepted(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "commands.md").read_text(), re.S)
    (tmp_path / "supernet.yaml").write_text(text)
    config = load_config(tmp_path / "supernet.yaml", SupernetConfig)
    assert config.rule == "sandwich" and config.data.name == "digits"


def bash(page: str) -> str:
    return "\n".join(re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.S))


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", bash("tutorial.md")], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert (tmp_path / "winner.onnx").stat().st_size > 10_000
    certificates = json.loads((tmp_path / "found" / "certificates.json").read_text())["certificates"]
    assert [c["status"] for c in certificates] == ["passed"]


def test_the_configurations_of_the_tutorial_are_accepted(tmp_path: Path) -> None:
    text = bash("tutorial.md")
    spaces = {name: re.search(rf"^{name}=(.*)$", text, re.M)[1] for name in ("S", "F")}  # type: ignore[index]
    found = dict(re.findall(r"^cat > (\w+)\.yaml <<EOF\n(.*?)^EOF$", text, re.S | re.M))
    kinds = {"supernet": SupernetConfig, "train": NetworkConfig, "fbnet": OneShotConfig}
    assert found.keys() == kinds.keys()
    for name, body in found.items():
        filled = body.replace("$S", spaces["S"]).replace("$F", spaces["F"]).replace("$ARCH", "{}")
        (tmp_path / f"{name}.yaml").write_text(filled)
        config = load_config(tmp_path / f"{name}.yaml", kinds[name])
        assert get_space(config.space).spec


@pytest.mark.parametrize("page", ["tutorial.md", "ofa.md", "fbnet.md", "commands.md"])
def test_every_option_shown_exists(page: str) -> None:
    shown = re.sub(r"\\\n\s*", " ", (DOCS / page).read_text())
    calls = re.findall(r"^(?:torchrun.* -m )?hwnas ([a-z-]+)(.*)$", shown, re.M)
    assert calls or page == "ofa.md"
    for command, rest in calls:
        known = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}, terminal_width=200).output
        for option in re.findall(r"(--[a-z-]+)", rest.partition("#")[0]):
            assert option in known, (command, option)


@pytest.mark.parametrize(("page", "kind"), [("ofa.md", SupernetConfig), ("fbnet.md", OneShotConfig)])
def test_the_configurations_of_the_pages_are_accepted(tmp_path: Path, page: str, kind: type[RunConfig]) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.S)
    (tmp_path / "config.yaml").write_text(text)
    assert get_space(load_config(tmp_path / "config.yaml", kind).space).genes


def test_a_method_of_its_own_is_registered_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "_members", dict(one_shot._members))
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "fbnet.md").read_text(), re.S)
    exec(compile(block, "docs/fbnet.md", "exec"), {})
    assert "mine" in one_shot
