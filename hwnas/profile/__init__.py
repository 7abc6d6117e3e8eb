"""What it costs: measures primitives and networks on a device, and keeps every sample."""

from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.stats import Measurement
from hwnas.profile.subject import Subject

__all__ = ["Backend", "Measurement", "Settings", "Subject", "backends"]
