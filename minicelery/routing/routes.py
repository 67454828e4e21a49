"""The setting `task_routes`: from a task's name to a queue's name or a dict of options."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from minicelery.exceptions import ImproperlyConfigured
from minicelery.settings.kinds import check_route, route_items

Ask = Callable[[str, Any, Any, dict[str, Any], Any], Any]
"""Name, args, kwargs, options and task to a route, or None: not one of mine."""


class Table:
    """A router made of a dict or of pairs: exact names first, then patterns in their order."""

    def __init__(self, routes: Any) -> None:
        self._exact: dict[str, Any] = {}
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        for pattern, route in route_items(routes):
            if isinstance(pattern, re.Pattern):
                self._patterns.append((pattern, route))
            elif "*" in pattern:
                self._patterns.append((re.compile(fnmatch.translate(pattern)), route))
            else:
                self._exact[pattern] = route

    def __call__(self, name: str, *_: Any) -> Any:
        route = self._exact.get(name)
        if route is not None:
            return route
        return next((route for pattern, route in self._patterns if pattern.match(name)), None)


class Routes:
    """All routers of the setting, asked in their order."""

    def __init__(self, value: Any) -> None:
        routers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        self._routers: list[Ask] = [_prepared(router) for router in routers]
        self.static = all(isinstance(router, Table) for router in self._routers)
        """Whether a task's route depends on nothing but its name."""

    def __bool__(self) -> bool:
        return bool(self._routers)

    def find(
        self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any
    ) -> dict[str, Any] | None:
        """The first route that a router has for the task, as a dict of its own."""
        for router in self._routers:
            route = router(name, args, kwargs, options, task)
            if route is not None:
                return _as_dict(route, name, router)
        return None


def _as_dict(route: Any, name: str, router: Ask) -> dict[str, Any]:
    if isinstance(route, str) or isinstance(getattr(route, "name", None), str):
        return {"queue": route} if route else {}
    if not isinstance(router, Table):  # a table has been checked when it was set
        try:
            check_route(f"the route of {name}", route)
        except ValueError as error:
            raise ImproperlyConfigured(f"task_routes: {error}") from None
    return dict(route)


def _prepared(router: Any) -> Ask:
    if isinstance(router, str):
        return _Named(router)
    if isinstance(router, (Mapping, list, tuple)):
        return Table(router)
    return _asking(router)


def _asking(router: Any) -> Ask:
    if hasattr(router, "route_for_task"):
        return lambda name, args, kwargs, options, task: router.route_for_task(name, args, kwargs)
    return lambda name, args, kwargs, options, task: router(name, args, kwargs, options, task=task)


class _Named:
    """A router given by its dotted path, imported at its first use."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ask: Ask | None = None

    def __call__(self, *call: Any) -> Any:
        if self._ask is None:
            router = self._imported()
            if isinstance(router, type) and hasattr(router, "route_for_task"):
                router = router()
            self._ask = _prepared(router) if not isinstance(router, str) else _asking(router)
        return self._ask(*call)

    def _imported(self) -> Any:
        module, _, name = self._path.replace(":", ".").rpartition(".")
        try:
            router = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"task_routes: the router {self._path!r} can't be imported ({error}); "
                "name it as package.module.function"
            ) from error
        if not callable(router) and not isinstance(router, Mapping) and not hasattr(router, "route_for_task"):
            raise ImproperlyConfigured(
                f"task_routes: {self._path!r} is a {type(router).__name__}, not a router: "
                "that is a function, or an object with route_for_task"
            )
        return router
