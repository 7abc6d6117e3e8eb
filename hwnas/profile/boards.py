"""The boards of an RPC tracker, as seen from a process that loads no runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache

from hwnas.core.errors import UnavailableError
from hwnas.profile.backends import Settings
from hwnas.profile.process import worker_environment

LOOK_S = 120.0


@dataclass(frozen=True)
class Boards:
    """The boards that a tracker has under one key: their device's name, and how many they are."""

    device: str
    count: int


@lru_cache
def _look(remote: str, key: str, device: str) -> Boards:
    """Ask in a process of its own, so that no runtime is loaded here and nothing that hangs is waited for."""
    command = [sys.executable, "-m", "hwnas.profile.tvm_board", remote, key, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, env=worker_environment(1))
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        return Boards(answer["device"], answer["boards"])
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"--remote {remote}: no answer within {LOOK_S:g} s") from None
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UnavailableError(f"--remote {remote} --key {key}: {last}") from None
    except KeyError:
        raise UnavailableError(f"--remote {remote} --key {key}: {answer['error']}") from None


def look_at_boards(settings: Settings) -> Boards:
    """The boards of `settings`; raises `UnavailableError` where tracker or boards do not answer."""
    return _look(settings.remote, settings.key, settings.device)
