"""The Python of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest

from hwnas.core.config import load_config
from hwnas.report import read_figures
from hwnas.train import SupernetConfig

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
