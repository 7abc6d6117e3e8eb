"""One registry for everything that has a name: spaces, backends, parsers, predictors, algorithms.

    predictors: Registry[type[Predictor]] = Registry("predictor")

    @predictors.register("ridge")
    class Ridge(Predictor): ...

A name can be taken once. Packages outside hwnas add theirs through the entry-point group `hwnas.<kind>s`, such as
`hwnas.predictors` or `hwnas.primitive_kinds`. One that cannot be loaded is in nobody's way until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from hwnas.core.errors import UnavailableError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to members. `modules` are imported at the first look-up, so that members need no import of their own.

    With `named`, a member learns the name that it is registered under, as its attribute `name`.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = (), *, named: bool = False) -> None:
        self.kind = kind
        self._named = named
        self._modules = modules
        self._members: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that gives `name` to a member; raises ValueError where the name is taken."""

        def add(member: T) -> T:
            if name in self._members:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._members[name]!r} and {member!r}")
            self._members[name] = member
            if self._named:
                setattr(member, "name", name)  # noqa: B010, a member is of any type
            return member

        return add

    def get(self, name: str) -> T:
        """The member called `name`; raises `UnknownNameError` with the known names; one that is broken says why."""
        self._load()
        if name in self._broken:
            raise UnavailableError(f"the {self.kind} {name!r} {self._broken[name]}; mend that package, or remove it")
        if name not in self._members:
            raise UnknownNameError(self.kind, name, self._members)
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._members

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._modules:
            import_module(module)
        for point in entry_points(group=f"hwnas.{self.kind.replace(' ', '_')}s"):
            if point.name not in self._members:
                self._load_point(point)

    def _load_point(self, point: EntryPoint) -> None:
        try:
            member = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "unknown"
            self._broken[point.name] = f"of the package {package} cannot be loaded ({type(error).__name__}: {error})"
        else:
            self.register(point.name)(member)
