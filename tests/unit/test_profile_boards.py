"""Boards at a tracker: a real tracker and real servers on loopback, one of which is killed half-way."""

import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from hwnas.cli.shell import run as command
from hwnas.core.errors import InputError, UnavailableError
from hwnas.profile.backends import Settings, backends
from hwnas.profile.boards import look_at_boards
from hwnas.profile.campaign import run_campaign
from hwnas.profile.device import local_target
from hwnas.profile.history import Effort, History
from hwnas.profile.processor import cpu_model
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace
from hwnas.spaces import get_space

KEY = "board"
START_S = 120
QUICK = Effort(
    sessions=2, goal=1.0, time_limit_s=0.02, batch_blocks=2, pace=Pace(block_s=0.001, least=2, warmup_s=0.01)
)
needs_tvm = pytest.mark.skipif(not backends.get("tvm").version(), reason="tvm: apache-tvm is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """As when the plug is pulled: all of a server's processes at once."""
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def boards():
    """A tracker's address, and its two servers."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    processes = [start("rpc_tracker", "--port", str(port), "--port-end", str(port + 1))]
    try:
        await_port(port)
        for _ in range(2):
            own = free_port()
            processes.append(
                start("rpc_server", "--port", str(own), "--port-end", str(own + 1), "--tracker", address, "--key", KEY)
            )
        wait_for(address, 2)
        yield address, processes[1:]
    finally:
        for process in processes:
            if process.poll() is None:
                kill(process)


def await_port(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def wait_for(address: str, count: int) -> None:
    from tvm import rpc

    host, _, port = address.partition(":")
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if rpc.connect_tracker(host, int(port)).summary()["queue_info"].get(KEY, {}).get("free", 0) == count:
                return
        except (OSError, RuntimeError):
            pass
        time.sleep(0.2)
    pytest.fail("tracker and servers did not start")


@needs_tvm
def test_boards_share_a_campaign_and_one_of_them_is_killed(boards, tmp_path, monkeypatch):
    address, servers = boards
    settings = Settings(remote=address, key=KEY)
    subjects = [Subject.primitive(primitive) for primitive in get_space("nasbench201").primitives()[:8]]
    target = local_target("tvm", settings)
    assert target.device == cpu_model() and look_at_boards(settings).count == 2
    workers, stored, before_the_kill = set(), [], []
    add = Store.add

    def watched(self, item, environment, sample):
        add(self, item, environment, sample)
        workers.add(environment)
        stored.append(item)
        if len(workers) > 1 and servers[0].poll() is None:
            before_the_kill.append(len(stored))
            kill(servers[0])

    monkeypatch.setattr(Store, "add", watched)
    with Store(tmp_path / "samples.sqlite") as store:
        run_campaign(store, target, settings, subjects, effort=QUICK)
        history = History(store, target)
        found = history.measurements(subjects, goal=QUICK.goal)
        records = store.environments(history.target)
    assert servers[0].poll() is not None, "the board was killed in the middle"
    assert all(measured.verdict != "failed" and measured.median > 0 for measured in found.values()), found
    assert len(stored) > before_the_kill[0] > 0, "the campaign went on"
    assert sum(len(blocks) for blocks in history.blocks.values()) == len(stored), "every block taken is in the store"
    assert all(record["board"] == cpu_model() and record["tracker"] == address for record in records)


@needs_tvm
def test_what_is_not_there_is_one_line(boards, tmp_path, capsys):
    address, _ = boards
    nobody = f"127.0.0.1:{free_port()}"
    for remote, key, said in (
        (address, "rpi4", f"no board is registered as 'rpi4' at the tracker {address}"),
        (nobody, KEY, f"no RPC tracker answers at {nobody}"),
    ):
        out = tmp_path / "run"
        code = command(
            [
                "profile",
                "--space",
                "nasbench201",
                "--runtime",
                "tvm",
                "--remote",
                remote,
                "--key",
                key,
                "--out",
                str(out),
            ]
        )
        lines = capsys.readouterr().err.splitlines()
        assert code == 2 and len(lines) == 1 and said in lines[0], lines
        assert not out.exists()


def test_boards_need_tracker_key_and_a_runtime_that_reaches_them():
    with pytest.raises(InputError, match="both --remote HOST:PORT and --key KEY"):
        local_target("onnxruntime", Settings(remote="127.0.0.1:9190"))
    with pytest.raises(UnavailableError, match="--runtime tvm"):
        local_target("onnxruntime", Settings(remote="127.0.0.1:9190", key="rpi4"))
