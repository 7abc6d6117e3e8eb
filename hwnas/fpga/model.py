"""`dpu-sim`: latency and energy of a DPU without a board, from what each engine has to do.

latency = sum over the terms of coefficient * demand, coefficients non-negative. Cycle terms are divided by the clock,
so that their coefficients are cycles for a cycle and carry over to other sizes and clocks of the same DPU.

energy = static power * latency + dynamic energy of the multiply-accumulates and of the bytes moved. The latency of a
network is not the sum of its blocks' latencies alone (features stay on the chip), so its energy is not either.

Everything that comes from here is marked simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas import __version__
from hwnas.core.documents import DPU_MODEL
from hwnas.core.errors import InputError
from hwnas.core.files import data_folder
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.fpga.demand import TERMS, block_demand, column, network_demand
from hwnas.fpga.targets import DpuTarget, get_target
from hwnas.spaces import Primitive, SearchSpace

LATENCY_TERMS = TERMS[:-1]
CYCLE_TERMS = TERMS[:7]
MOVED = ("weight_bytes", "boundary_bytes", "spilled_bytes")


@dataclass(frozen=True)
class EnergyModel:
    """Coefficients of the energy and their source.

    Attributes:
        static_mw: power that the board draws whenever it runs, milliwatts.
        pj_per_mac, pj_per_byte: dynamic energy of a multiply-accumulate and of a byte moved to or from DDR, picojoules.
        source: board, data and error, in words.
    """

    static_mw: float
    pj_per_mac: float
    pj_per_byte: float
    source: str


@dataclass(frozen=True)
class DpuModel:
    """A calibrated cost model.

    Attributes:
        coefficients: latency term -> cycles a cycle, a row or a group, or nanoseconds a byte.
        energy: None where nothing is known of the board's power.
        provenance: board, data, number of samples, error in percent.
    """

    coefficients: Mapping[str, float]
    energy: EnergyModel | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def latency_ms(self, demand: NDArray[np.float64], target: DpuTarget) -> NDArray[np.float64]:
        """Latency of each row of demand, shape (n,), milliseconds."""
        weights = np.array([self.coefficients[term] for term in LATENCY_TERMS])
        result: NDArray[np.float64] = nanoseconds(demand, target) @ weights / 1e6
        return result

    def energy_mj(self, demand: NDArray[np.float64], target: DpuTarget) -> NDArray[np.float64]:
        """Energy of each row of demand, shape (n,), millijoules; raises `InputError` without an energy model."""
        if self.energy is None:
            raise InputError("this DPU model has no energy coefficients; calibrate it with a table that has energy_mj")
        dynamic_pj = self.energy.pj_per_mac * column(demand, ["macs"])[:, 0]
        dynamic_pj += self.energy.pj_per_byte * column(demand, MOVED).sum(axis=1)
        result: NDArray[np.float64] = self.energy.static_mw * self.latency_ms(demand, target) / 1e3 + dynamic_pj / 1e9
        return result

    def save(self, path: str | Path) -> None:
        values = {
            "coefficients": dict(self.coefficients),
            "energy": self.energy.__dict__ if self.energy else None,
            "provenance": dict(self.provenance),
        }
        DPU_MODEL.write(Path(path), values)

    @classmethod
    def load(cls, path: str | Path) -> DpuModel:
        """Read a model that `save` wrote; raises `InputError` where it is none."""
        values = DPU_MODEL.read(Path(path))
        coefficients = values.get("coefficients")
        if not isinstance(coefficients, dict):
            coefficients = {}
        if set(coefficients) != set(LATENCY_TERMS) or not all(map(_sound, coefficients.values())):
            raise InputError(f"{path}: the coefficients are not one number of at least 0 for each latency term")
        energy = values.get("energy")
        try:
            return cls(coefficients, EnergyModel(**energy) if energy else None, values.get("provenance", {}))
        except TypeError as error:
            raise InputError(f"{path}: not an energy model ({error})") from error


def _sound(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def nanoseconds(demand: NDArray[np.float64], target: DpuTarget) -> NDArray[np.float64]:
    """Demand of the latency terms with cycles as nanoseconds at the target's clock, shape (n, terms)."""
    scale = [1e3 / target.clock_mhz if term in CYCLE_TERMS else 1.0 for term in LATENCY_TERMS]
    return column(demand, LATENCY_TERMS) * scale


def shipped_model(target: DpuTarget) -> DpuModel:
    """The model that ships for the target's board, else the one of the nearest DPU, as its provenance says.

    Its energy is the board's own where it was measured, else None.
    """
    with data_folder("fpga") as folder:
        own = folder / "coefficients" / f"{target.name}.json"
        if own.is_file():
            return DpuModel.load(own)
        return DpuModel.load(folder / "coefficients" / "default.json")


@dataclass(frozen=True)
class Simulation:
    """Simulated costs: latency (n,) in milliseconds, energy (n,) in millijoules or None where no power is known."""

    latency_ms: NDArray[np.float64]
    energy_mj: NDArray[np.float64] | None
    target: Target


def simulate(
    subjects: Iterable[Primitive] | tuple[SearchSpace, ArrayLike],
    target: str | DpuTarget,
    model: DpuModel | None = None,
) -> Simulation:
    """Latency and energy of primitives, each alone, or of whole networks as `(space, population)`.

    `target` is a DPU target or its name; `model` the calibrated coefficients, the shipped ones where None.
    Raises `InputError` for a block with an operation that the DPU has no engine for.
    """
    dpu = get_target(target) if isinstance(target, str) else target
    model = model or shipped_model(dpu)
    if isinstance(subjects, tuple) and len(subjects) == 2 and isinstance(subjects[0], SearchSpace):
        demand = network_demand(subjects[0], subjects[1], dpu)
    else:
        demand = block_demand(subjects, dpu)
    energy = model.energy_mj(demand, dpu) if model.energy else None
    return Simulation(model.latency_ms(demand, dpu), energy, sim_target(dpu))


def sim_target(dpu: DpuTarget) -> Target:
    """The target of everything simulated for a DPU: its origin keeps it from merging with a measured table."""
    version = ".".join(__version__.split(".")[:2])
    device = f"{dpu.device} at {dpu.clock_mhz:g} MHz"
    return Target(device, "dpu-sim", version, precision="int8", threads=0, origin="simulated")


def simulated_table(
    primitives: Iterable[Primitive], target: str | DpuTarget, model: DpuModel | None = None
) -> CostTable:
    """The cost table of primitives, each simulated alone; its manifest names the coefficients' origin.

    Blocks that the DPU has no engine for have no row: the manifest lists them under `left_out` with the reason.
    """
    dpu = get_target(target) if isinstance(target, str) else target
    model = model or shipped_model(dpu)
    rows: dict[str, dict[str, Cost]] = {}
    left_out: dict[str, str] = {}
    for primitive in primitives:
        try:
            demand = block_demand([primitive], dpu)
        except InputError as error:
            left_out[primitive.key] = str(error)
            continue
        rows[primitive.key] = {"latency_ms": Cost(float(model.latency_ms(demand, dpu)[0]), verdict="simulated")}
        if model.energy:
            rows[primitive.key]["energy_mj"] = Cost(float(model.energy_mj(demand, dpu)[0]), verdict="simulated")
    manifest = {"simulated": True, "dpu": dpu.to_json(), "coefficients": dict(model.provenance), "left_out": left_out}
    if model.energy:
        manifest["energy"] = model.energy.source
    return CostTable(sim_target(dpu), rows, manifest, f"dpu-sim of {dpu.name}")
