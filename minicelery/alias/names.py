"""Names of workers and tasks, and what they name: Celery's `utils.nodenames` and `utils.imports`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from minicelery.alias.texts import simple_format

gethostname = functools.cache(socket.gethostname)


def nodename(name: str, hostname: str) -> str:
    """``name@hostname``."""
    return f"{name}@{hostname}"


def nodesplit(name: str) -> tuple[str | None, str] | list[str]:
    """Both parts of a node's name; None for the first where it has one only."""
    parts = name.split("@", 1)
    return (None, parts[0]) if len(parts) == 1 else parts


def anon_nodename(hostname: str | None = None, prefix: str = "gen") -> str:
    """The name of this process as a sender."""
    return nodename(f"{prefix}{os.getpid()}", hostname or gethostname())


def default_nodename(hostname: str | None, default_name: str = "celery") -> str:
    """The name of a worker that was given `hostname`, which may be a whole name or the part behind the @."""
    name, host = nodesplit(hostname or "")
    return nodename(name or default_name, host or gethostname())


def node_format(s: str, name: str, **extra: Any) -> str | None:
    """The text with ``%p``, ``%n``, ``%h``, ``%d``, ``%i`` and ``%I`` filled in for a node's name."""
    short, host = nodesplit(name)
    return host_format(s, host, short or "celery", p=name, **extra)


def host_format(s: str, host: str | None = None, name: str | None = None, **extra: Any) -> str | None:
    """The text with ``%h``, ``%n`` and ``%d`` filled in; ``%i`` and ``%I`` are a child's, and empty here."""
    host = host or gethostname()
    short, _, domain = host.partition(".")
    return simple_format(s, {"h": host, "n": name or short, "d": domain, "i": "0", "I": "", **extra})


def qualname(obj: Any) -> str:
    """``module.Name`` of a class, or of an object's class; of functions with their own module."""
    if not hasattr(obj, "__qualname__"):
        obj = type(obj)
    module = getattr(obj, "__module__", None)
    return f"{module}.{obj.__qualname__}" if module else str(obj.__qualname__)


def symbol_by_name(
    name: Any, aliases: Mapping[str, str] | None = None, imp: Any = None, package: str | None = None,
    sep: str = ".", default: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """What ``package.module.name`` or ``package.module:name`` names; what is no text is returned as it is.

    `default`, if there is one, stands for what can't be found; else that raises.
    """
    if not isinstance(name, str):
        return name
    path = (aliases or {}).get(name) or name
    load = imp or importlib.import_module
    module, _, attribute = path.rpartition(":" if ":" in path else sep)
    try:
        if not module:
            return load(package if path.startswith((".", ":")) and package else path)
        found = load(module, package=package, **kwargs)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError):
        if default is None:
            raise
        return default


def instantiate(name: Any, *args: Any, **kwargs: Any) -> Any:
    """An instance of the class of that name."""
    return symbol_by_name(name)(*args, **kwargs)


class NotAPackage(Exception):
    """A module was looked for in what is no package."""


@contextlib.contextmanager
def cwd_in_path() -> Iterator[None]:
    """Modules of the working directory can be imported, here and for as long as this lasts."""
    here = os.getcwd()
    if here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def find_module(module: str, path: Any = None, imp: Any = None) -> ModuleType:
    """The module, imported; raises NotAPackage where one above it is none."""
    with cwd_in_path():
        parts = module.split(".")
        for count in range(1, len(parts)):
            above = (imp or importlib.import_module)(".".join(parts[:count]))
            if not hasattr(above, "__path__") and module not in sys.modules:
                raise NotAPackage(".".join(parts[:count]))
        found: ModuleType = (imp or importlib.import_module)(module)
        return found


def import_from_cwd(module: str, imp: Any = None, package: str | None = None) -> ModuleType:
    """The module, which may be one of the working directory."""
    with cwd_in_path():
        found: ModuleType = (imp or importlib.import_module)(module, package=package)
        return found


def reload_from_cwd(module: ModuleType, reloader: Any = None) -> Any:
    """The module, loaded anew."""
    with cwd_in_path():
        return (reloader or importlib.reload)(module)


def module_file(module: ModuleType) -> str:
    """The file of its source."""
    name = str(module.__file__)
    return name[:-1] if name.endswith(".pyc") else name


def gen_task_name(app: Any, name: str, module_name: str | None) -> str:
    """The name of a task that is given none."""
    if app is not None and module_name == "__main__" and app.main:
        module_name = app.main
    return ".".join(part for part in (module_name or "__main__", name) if part)
