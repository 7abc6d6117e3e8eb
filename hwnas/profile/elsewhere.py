"""Devices that this machine cannot run: a bundle of models to copy there, or a simulation in the device's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwnas.core.bundle import BundleReport
from hwnas.core.errors import InputError
from hwnas.fpga import SimulatedRun, get_target, simulate_run
from hwnas.fpga.bundle import emit_bundle
from hwnas.profile.bundle import emit_files
from hwnas.profile.choosers import AtRandom, Chooser, at_random
from hwnas.spaces import get_space

ELSEWHERE = ("fpga", "file")
SIMULATOR = "dpu-sim"


def profile_elsewhere(
    space: str,
    device: str,
    batches: Sequence[int] = (1,),
    *,
    runtime: str = "",
    target: str | None = None,
    emit: str | Path | None = None,
    out: str | Path | None = None,
    networks: int = 0,
    choose: Chooser = at_random,
    seed: int = 0,
) -> BundleReport | SimulatedRun:
    """Write the bundle `emit` for a device that returns files, or the simulated run `out`.

    Args:
        device: `fpga`, whose `target` is a DPU, or `file`.
        runtime: `dpu-sim` for a simulated run.
        networks: whole networks besides the primitives; a DPU's are random ones of those that it runs.

    Raises `InputError` for what does not go together, and where `emit` holds something else.
    """
    if choose.adaptive or (device == "fpga" and not isinstance(choose, AtRandom)):
        raise InputError(f"--device {device} measures nothing here: leave --until and --select {choose.name} out")
    if (target is None) == (device == "fpga"):
        raise InputError(f"--device {device}: {'give --target' if device == 'fpga' else 'it has no --target'}")
    if len(batches) > 1 or (target and batches[0] != 1):
        raise InputError(f"--batch: {'a DPU takes one image at a time' if target else 'a bundle has one batch size'}")
    request = choose.request(space, networks, seed)
    if runtime == SIMULATOR and target and out and not emit:
        return simulate_run(get_space(space), get_target(target), out, request.networks, seed)
    if emit is None or out is not None:
        raise InputError(f"--device {device}: give --emit BUNDLE (or --target DPU --runtime {SIMULATOR} --out RUN)")
    if target:
        return emit_bundle(get_space(space), get_target(target), emit, request.networks, seed)
    chosen = None if isinstance(choose, AtRandom) else choose.design(request)
    return emit_files(get_space(space), emit, request.networks, batches[0], seed, chosen)
