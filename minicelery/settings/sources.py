"""Where settings are read from: objects, mappings, and modules given by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NoReturn

from minicelery.exceptions import ImproperlyConfigured
from minicelery.settings.names import is_foreign, nearest, renamed
from minicelery.settings.table import GROUPS, TABLE

_GROUP_PREFIXES = tuple(f"{group}_" for group in GROUPS)


def read_envvar(variable: str) -> str:
    """The name of the settings module that an environment variable holds, for `read_config`.

    Raises ImproperlyConfigured where it is unset or empty.
    """
    name = os.environ.get(variable, "").strip()
    if not name:
        raise ImproperlyConfigured(
            f"the environment variable {variable!r} is not set; it must name a module of settings, "
            f"e.g. {variable}=celeryconfig"
        )
    return name


def read_config(source: Any, namespace: str | None = None, silent: bool = False) -> dict[str, Any]:
    """The settings that an object, a mapping, or a module given by name holds, for `update`.

    With `namespace` "CELERY" only keys that begin with ``CELERY_`` count, and lose that.
    Names are ``celeryconfig``, ``pkg.module:attribute``; where there is no such thing,
    raises ImportError, or is empty if `silent`.
    """
    if isinstance(source, str):
        found = _import(source, silent)
        if found is None:
            return {}
        source = found
    get: Callable[[str], Any]
    if isinstance(source, Mapping):
        keys, get = [key for key in source if isinstance(key, str)], source.__getitem__
    else:
        keys, get = [key for key in dir(source) if not key.startswith("_")], _attributes_of(source)
    if namespace:
        return _without_prefix(keys, namespace.rstrip("_").upper() + "_", get)
    if isinstance(source, Mapping):
        return {key: get(key) for key in keys if not is_foreign(key)}
    return {key: get(key) for key in keys if _is_meant_as_setting(key, get)}


def _attributes_of(source: Any) -> Callable[[str], Any]:
    return lambda key: getattr(source, key)


def _without_prefix(keys: Iterable[str], prefix: str, get: Callable[[str], Any]) -> dict[str, Any]:
    found = {}
    for key in keys:
        name = key[len(prefix) :].lower()
        if name and key.upper().startswith(prefix):
            # An old name, such as CELERY_ALWAYS_EAGER, means something only as a whole.
            found[name if name in TABLE or not renamed(key) else key] = get(key)
    return found


def _is_meant_as_setting(key: str, get: Callable[[str], Any]) -> bool:
    """Whether an attribute is a setting, if misspelt, and not just something a module uses."""
    if key.isupper():
        return not is_foreign(key)
    if key in TABLE or renamed(key):
        return True
    value = get(key)
    if value is not None and not isinstance(value, (str, int, float, dict, list, tuple, set)):
        return False
    return key.startswith(_GROUP_PREFIXES) or nearest(key, cutoff=0.85) is not None


def _import(name: str, silent: bool) -> Any:
    """The module or attribute of that name; None if there is none and that's fine."""
    module, _, attribute = name.partition(":")
    directory = os.getcwd()
    added = directory not in sys.path
    if added:
        sys.path.insert(0, directory)
    try:
        return _find(module, attribute)
    except _Missing as error:
        if silent:
            return None
        _raise_missing(name, error)
    finally:
        if added and directory in sys.path:
            sys.path.remove(directory)


class _Missing(Exception):
    """There is no such module or attribute."""


def _find(module: str, attribute: str) -> Any:
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        parent, _, last = module.rpartition(".")
        if not parent or attribute:
            raise _Missing(f"no module is named {error.name!r}") from error
        return _find(parent, last)
    for part in filter(None, attribute.split(".")):
        if not hasattr(found, part):
            raise _Missing(f"{getattr(found, '__name__', module)!r} has no attribute {part!r}")
        found = getattr(found, part)
    return found


def _raise_missing(name: str, error: _Missing) -> NoReturn:
    hint = f"looked along sys.path, from {os.getcwd()}"
    if name.endswith(".py"):
        hint = f"write it without .py: {name[:-3]!r}"
    raise ImportError(f"can't read settings from {name!r}: {error}; {hint}", name=name) from error
