"""What it costs: measures primitives and networks on a device, and keeps every sample."""

from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.choosers import AtRandom, Chooser
from hwnas.profile.history import Effort
from hwnas.profile.profiling import measure_onnx, measure_subjects, profile, profile_batches
from hwnas.profile.run import Request, Run
from hwnas.profile.stats import Measurement, Noise
from hwnas.profile.subject import Subject

__all__ = [
    "AtRandom",
    "Backend",
    "Chooser",
    "Effort",
    "Measurement",
    "Noise",
    "Request",
    "Run",
    "Settings",
    "Subject",
    "backends",
    "measure_onnx",
    "measure_subjects",
    "profile",
    "profile_batches",
]
