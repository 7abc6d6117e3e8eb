"""The Python of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest

from hwnas.report import read_figures

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
