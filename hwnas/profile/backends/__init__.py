"""The runtimes that can be measured."""

from hwnas.profile.backends.base import Backend, Settings, backends

__all__ = ["Backend", "Settings", "backends"]
