"""Imports by a table of names: modules whose names are found elsewhere, at their first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

LOOKED_FOR = frozenset({"celery.apps"})
"""Modules that programs look for in any package, here Django in those of INSTALLED_APPS, and do without."""


class Place(NamedTuple):
    """Where a name is found."""

    module: str
    name: str


def read_row(row: str) -> dict[str, Place]:
    """The names of a row ``"home.module: Name Theirs=Ours other.module: Another"``, and where each is found."""
    found: dict[str, Place] = {}
    module = ""
    for word in row.split():
        if word.endswith(":"):
            module = word[:-1]
            continue
        theirs, _, ours = word.partition("=")
        found[theirs] = Place(module, ours or theirs)
    return found


class Finder(MetaPathFinder, Loader):
    """Serves the modules of `served` below `roots`, and says why not those of `refused`.

    `served` has a row of names for each module, see `read_row`; the packages above it need none.
    A module of ours that has an `on_served` is told when somebody asks for a name of it so.
    `refused` has a reason for each path of a module, or of a name in one.
    """

    def __init__(self, served: Mapping[str, str], refused: Mapping[str, str]) -> None:
        self.served = served
        self.refused = refused
        self.roots: set[str] = set()
        self.modules = {*served, *(above for path in served for above in _packages_above(path))}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Raises ImportError for what is refused, and None where Celery has nothing either."""
        if fullname.partition(".")[0] not in self.roots:
            return None
        if fullname in self.modules:
            # A package, each of them: so `from celery.result import refused` comes here too.
            return ModuleSpec(fullname, self, origin="minicelery", is_package=True)
        if (words := self.refusal(fullname)) is not None:
            kind = ModuleNotFoundError if fullname in LOOKED_FOR else ImportError
            raise kind(words, name=fullname)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: its names are found when they are asked for."""

    def refusal(self, path: str) -> str | None:
        """Why the path is not served.

        None for a module right in the root of which the table says nothing: programs look
        whether a package has a module of some name (Django: `models`, `admin`), and Celery has none.
        """
        for covering in (path, *_packages_above(path)):
            if (why := self.refused.get(covering)) is not None:
                return f"minicelery has no {path}: {why}"
        if path.count(".") > 1:
            return f"minicelery has no {path}: this version does not serve it"
        return None


class StandIn(ModuleType):
    """A module of another library, made of what minicelery has."""

    def __init__(self, name: str, finder: Finder) -> None:
        super().__init__(name, f"What minicelery has of {name}.")
        self._finder = finder
        self._places = read_row(finder.served.get(name, ""))
        self.__file__ = __file__  # a package has a place, as Django asks of what INSTALLED_APPS names
        self.__all__ = [name for name in self._places if not name.startswith("_")]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in self._places:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        path = f"{self.__name__}.{name}"
        if (place := self._places.get(name)) is not None:
            home = importlib.import_module(place.module)
            if (on_served := getattr(home, "on_served", None)) is not None:
                on_served()
            value = getattr(home, place.name)
            setattr(self, name, value)
            return value
        if path in self._finder.modules:
            return importlib.import_module(path)
        words = self._finder.refusal(path) or f"minicelery has no {path}"
        raise AttributeError(words, name=name, obj=self)

    def __dir__(self) -> list[str]:
        head = f"{self.__name__}."
        below = {
            path[len(head) :].partition(".")[0] for path in self._finder.modules if path.startswith(head)
        }
        return sorted({*super().__dir__(), *self._places, *below})


def stands_in(module: Any) -> bool:
    """Whether the module is one of ours under another library's name."""
    return isinstance(module, StandIn)


def _packages_above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
