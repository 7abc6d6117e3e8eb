"""TVM: tuning with records that are kept, and what is refused."""

import json

import numpy as np
import pytest

from hwnas.profile.backends import Settings, backends
from hwnas.profile.device import local_target
from hwnas.profile.subject import Subject
from hwnas.profile.timer import random_inputs
from hwnas.spaces import Primitive

Tvm = backends.get("tvm")
BLOCK = Primitive.of("linear", (64, 1, 1), out=10)
needs_tvm = pytest.mark.skipif(not Tvm.version(), reason="tvm: apache-tvm is not installed")


@needs_tvm
def test_a_tuned_kernel_is_right_and_its_records_are_used_again(tmp_path, monkeypatch):
    import torch

    from hwnas.profile import tvm_tuning

    settings = Settings(trials=3, records=str(tmp_path / "tuning"))
    subject, beats = Subject.primitive(BLOCK), []
    backend = Tvm(settings)
    backend.alive = lambda: beats.append(1)
    model = backend.compile(subject)
    with torch.no_grad():
        truth = subject.build().eval()(*map(torch.from_numpy, random_inputs(subject.input_shapes(1)))).numpy()
    np.testing.assert_allclose(np.asarray(backend.run(model)[0]), truth, rtol=2e-4, atol=2e-4 * np.abs(truth).max())
    kept = sorted(path.name for path in (tmp_path / "tuning").iterdir())
    assert kept and all(name.endswith("-3") for name in kept)
    assert len(beats) >= len(kept), "each schedule tells that the tuner is alive"
    seconds = [record[1][1] for name in kept for record in records_of(tmp_path / "tuning" / name)]
    assert seconds and all(0 < value < 10 for runs in seconds for value in runs)

    monkeypatch.setattr(tvm_tuning, "_tune", lambda *_: pytest.fail("tuned again"))
    for trials in (1, 3):
        again = Tvm(Settings(trials=trials, records=settings.records))
        np.testing.assert_array_equal(
            np.asarray(again.run(again.compile(subject))[0]), np.asarray(backend.run(model)[0])
        )


def records_of(folder):
    return [json.loads(line) for line in (folder / "database_tuning_record.json").read_text().splitlines()]


@needs_tvm
def test_schedules_that_do_not_run_are_an_error(tmp_path, monkeypatch):
    from hwnas.profile import tvm_tuning

    def crash(*_):
        raise RuntimeError("the process ended with -9")

    monkeypatch.setattr(tvm_tuning, "here", lambda *_: crash)
    with pytest.raises(RuntimeError, match=r"none of 2 schedules of a kernel ran: RuntimeError: the process ended"):
        Tvm(Settings(trials=2, records=str(tmp_path))).compile(Subject.primitive(BLOCK))
    assert not list(tmp_path.iterdir()), "what was not finished leaves nothing"


@needs_tvm
def test_a_target_says_whether_it_is_tuned():
    assert not local_target("tvm", Settings()).tuned
    assert local_target("tvm", Settings(trials=8)).tuned
    assert "--trials" in backends.get("onnxruntime").unavailable(Settings(trials=8))


def test_a_version_that_crashes_is_refused(monkeypatch):
    monkeypatch.setattr(Tvm, "installed", staticmethod(lambda _: "0.1.15.post2"))
    assert "apache-tvm-ffi 0.1.15.post2 crashes" in Tvm.unavailable(Settings(trials=8))
    assert Tvm.unavailable(Settings()) is None
