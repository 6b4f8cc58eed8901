"""Named parts (rules, attacks, tasks, graphs) that register themselves when their module is imported."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from mpi_resmtl.errors import unknown

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind by name; every module of `package` is imported on first use, so a new file is enough."""

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._parts: dict[str, Part] = {}
        self._discovered = package is None

    def add(self, name: str, part: Part) -> None:
        """Register `part`; raises ValueError when the name is taken."""
        if name in self._parts:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._parts[name] = part

    def named(self, name: str) -> Callable[[Part], Part]:
        """Decorator: register what follows under `name`."""

        def register(part: Part) -> Part:
            self.add(name, part)
            return part

        return register

    def __getitem__(self, name: str) -> Part:
        """The part called `name`; raises UserError with the nearest right name."""
        self._discover()
        if name not in self._parts:
            raise unknown(self.kind, name, self._parts)
        return self._parts[name]

    def items(self) -> list[tuple[str, Part]]:
        """All (name, part), sorted by name."""
        self._discover()
        return sorted(self._parts.items())

    def _discover(self) -> None:
        if not self._discovered:
            self._discovered = True
            package = importlib.import_module(self._package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
                importlib.import_module(f"{self._package}.{module.name}")


def summary(part: object) -> str:
    """The first line of a part's docstring."""
    return (part.__doc__ or "").strip().splitlines()[0] if part.__doc__ else ""
