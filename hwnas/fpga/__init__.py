"""What a DPU can run, how a network is quantised for it, and what it costs there."""

from hwnas.fpga.checker import CheckReport, check, check_primitive, runs_on, supported
from hwnas.fpga.targets import DpuTarget, get_target, target_names

__all__ = [
    "CheckReport",
    "DpuTarget",
    "check",
    "check_primitive",
    "get_target",
    "runs_on",
    "supported",
    "target_names",
]
