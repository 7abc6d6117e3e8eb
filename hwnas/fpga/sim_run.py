"""A run folder of simulated costs: what `profile` leaves behind, with `dpu-sim` in the board's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from hwnas import __version__
from hwnas.core.documents import NETWORKS_FILE, SIMULATED_RUN, TABLE_FILE
from hwnas.core.errors import InputError
from hwnas.core.files import check_folder, replacing
from hwnas.fpga.checker import sample_of
from hwnas.fpga.demand import network_demand
from hwnas.fpga.model import DpuModel, shipped_model, sim_target, simulated_table
from hwnas.fpga.targets import DpuTarget, get_target
from hwnas.spaces import SearchSpace

SIMULATED = "simulated"


@dataclass(frozen=True)
class SimulatedRun:
    """What a simulated run holds: primitives with a cost, networks, and the primitives left out with the reason."""

    out: Path
    primitives: int
    networks: int
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "out": str(self.out), "simulated": True}


def simulate_run(
    space: SearchSpace,
    target: str | DpuTarget,
    out: str | Path,
    networks: int = 0,
    seed: int = 0,
    model: DpuModel | None = None,
) -> SimulatedRun:
    """Write `out/table.csv`, and `out/networks.parquet` with `networks` sampled architectures, all marked simulated.

    Columns: `latency_ms`, and `energy_mj` where the model knows the board's power. Architectures with a block that the
    DPU has no engine for are not sampled. A simulated run of the same space and DPU in `out` is replaced. Raises
    `InputError` where there are too few others, and where `out` holds something else.
    """
    folder = Path(out)
    dpu = get_target(target) if isinstance(target, str) else target
    model = model or shipped_model(dpu)
    table = simulated_table(space.primitives(), dpu, model)
    if not table.rows:
        raise InputError(f"the DPU {dpu.name} has no engine for any primitive of {space.spec}")
    allowed = np.array([primitive.key in table.rows for primitive in space.primitives()])
    rows = _networks(space, dpu, model, allowed, networks, seed) if networks else {}
    of = {"space": space.spec, "dpu": dpu.to_json()}
    _check_same(folder, of)
    about = {"target": sim_target(dpu).to_json(), "environment": {"hwnas": __version__}}
    SIMULATED_RUN.write(folder / SIMULATED_RUN.file, {**of, **about, "networks": networks, "seed": seed})
    (folder / NETWORKS_FILE).unlink(missing_ok=True)
    table.save(folder / TABLE_FILE)
    if rows:
        with replacing(folder / NETWORKS_FILE) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(rows), temporary)
    return SimulatedRun(folder, len(table.rows), networks, dict(table.manifest["left_out"]))


def _check_same(folder: Path, of: dict[str, Any]) -> None:
    """Raise `InputError` unless `folder` is vacant, or holds a simulated run `of` the same space and target."""
    check_folder(folder)
    path = folder / SIMULATED_RUN.file
    if path.exists():
        found = SIMULATED_RUN.read(path)
        if {name: found.get(name, value) for name, value in of.items()} != of:
            raise InputError(f"{folder} holds a simulated run of another space or DPU; choose another --out")
    elif (taken := folder / TABLE_FILE).exists() or (taken := folder / NETWORKS_FILE).exists():
        raise InputError(f"{taken} is of no simulated run; choose another --out")


def _networks(
    space: SearchSpace, dpu: DpuTarget, model: DpuModel, allowed: NDArray[np.bool_], n: int, seed: int
) -> dict[str, list[Any]]:
    population = sample_of(space, allowed, n, seed)
    demand = network_demand(space, population, dpu)
    columns: dict[str, list[Any]] = {"space": [space.spec] * n, "arch": [space.format(row) for row in population]}
    costs = {"latency_ms": model.latency_ms(demand, dpu)}
    if model.energy:
        costs["energy_mj"] = model.energy_mj(demand, dpu)
    for metric, values in costs.items():
        columns |= {metric: values.tolist(), f"{metric}_verdict": [SIMULATED] * n}
    return columns
