"""What a DPU can run, how a network is quantised for it, and what it costs there."""

from hwnas.fpga.calibration import CalibrationReport, calibrate, calibrate_file, calibrate_networks
from hwnas.fpga.checker import CheckReport, check, check_primitive, runs_on, supported
from hwnas.fpga.model import DpuModel, Simulation, shipped_model, simulate, simulated_table
from hwnas.fpga.sim_run import SimulatedRun, simulate_run
from hwnas.fpga.targets import DpuTarget, get_target, target_names

__all__ = [
    "CalibrationReport",
    "CheckReport",
    "DpuModel",
    "DpuTarget",
    "SimulatedRun",
    "Simulation",
    "calibrate",
    "calibrate_file",
    "calibrate_networks",
    "check",
    "check_primitive",
    "get_target",
    "runs_on",
    "shipped_model",
    "simulate",
    "simulate_run",
    "simulated_table",
    "supported",
    "target_names",
]
