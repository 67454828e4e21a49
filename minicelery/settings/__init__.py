"""The settings of an app: checked when they are set, plain attributes when they are read."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone, tzinfo
from functools import lru_cache
from typing import Any

from minicelery.exceptions import ImproperlyConfigured, UnknownSetting
from minicelery.settings.kinds import BROKER_URL, STORE_URL, Setting
from minicelery.settings.names import is_foreign, namespaced, renamed, suggestion
from minicelery.settings.sources import read_config, read_envvar
from minicelery.settings.table import TABLE

__all__ = ["RenamedSetting", "Settings", "UnservedSetting", "masked", "read_config", "read_envvar"]

_FROM_ENVIRONMENT = ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
_OPTIONS = ("broker_transport_options", "result_backend_transport_options")
_CONTENT = ("accept_content", "result_accept_content")
_SECRET = re.compile("password|passwd|secret|token|key", re.IGNORECASE)
_NOT_SECRET = re.compile("routing_key|keyprefix|keyspace|keepalive", re.IGNORECASE)


class UnservedSetting(UserWarning):
    """A setting that is known but has no effect in this version."""


class RenamedSetting(UserWarning):
    """A setting given by the name it had before Celery 4."""


class Settings(Mapping[str, Any]):
    """Every setting with its value, as attribute and as item.

    Old names, and new ones with ``CELERY_`` in front, may be used too.  A value that can't
    work raises ImproperlyConfigured when it is set, and leaves everything as it was.
    """

    # Values live in `__dict__`, so that reading one is a plain attribute lookup.
    __slots__ = ("__dict__", "__weakref__", "_explicit", "_given", "_said", "revision")

    _explicit: set[str]  # set by the program; stronger than the environment
    _given: set[str]  # those, and what the environment and `add_defaults` gave
    _said: set[str]  # what has been warned of

    revision: int
    """Grows with every change, so that what is derived from settings can be kept until then."""

    def __init__(self, values: Mapping[str, Any] | None = None, *, strict: bool = False) -> None:
        self._explicit, self._given, self._said, self.revision = set(), set(), set(), 0
        vars(self).update((row.name, _fresh(row.default)) for row in TABLE.values())
        if strict:
            self.strict_config = True
        if values:
            self.update(values)

    # -- reading ---------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Reached for names outside of the table only.
        known = None if name.startswith("_") else self._known(name)
        if known is None:
            raise AttributeError(f"no setting is named {name!r}{suggestion(name)}")
        return vars(self)[known]

    def __getitem__(self, key: str) -> Any:
        known = self._known(key)
        if known is None:
            raise KeyError(key)
        return vars(self)[known]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(key in vars(self) or namespaced(key) or renamed(key))

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __repr__(self) -> str:
        return f"<Settings {self.table()}>"

    def changed(self) -> dict[str, Any]:
        """The values that differ from their defaults."""
        return {name: value for name, value in self.items() if _differs(name, value)}

    def value_set_for(self, key: str) -> bool:
        """Whether anything gave `key` a value, be it the default's."""
        name = self._known(key)
        return name is not None and (name in self._given or _differs(name, vars(self)[name]))

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """The value of ``<namespace>_<name>``, as packages for Celery ask: ``("extended", "result")``."""
        return self[f"{namespace}_{name}"]

    def table(self, with_defaults: bool = False) -> dict[str, Any]:
        """The values fit to be shown to others; those at their defaults only if asked for."""
        shown = self if with_defaults else self.changed()
        return {name: masked(name, value) for name, value in shown.items()}

    def humanize(self, with_defaults: bool = False) -> str:
        """`table` as text, a line for each setting."""
        return "\n".join(f"{name}: {value!r}" for name, value in self.table(with_defaults).items())

    def zone(self) -> tzinfo:
        """The time zone that `timezone` and `enable_utc` choose.  Raises ImproperlyConfigured."""
        zone = self.timezone
        if zone is None:
            return timezone.utc if self.enable_utc else _local_zone()
        return _zone(zone) if isinstance(zone, str) else zone

    # -- changing --------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Settings.__slots__:
            object.__setattr__(self, name, value)
            return
        self[name] = value

    def __setitem__(self, key: str, value: Any) -> None:
        name = self._known(key)
        if name is None:
            self._say_unknown(key)
        self._assign({name or key: value})

    def update(
        self, mapping: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None, /, **values: Any
    ) -> None:
        """Set many at once, or none if one of them can't work.

        New names win over ``CELERY_…`` ones, and these over old ones.  Upper-case keys of
        others, such as Flask's, are passed over.
        """
        self._assign(self._translated({**dict(mapping or ()), **values}))

    def add_defaults(self, mapping: Mapping[str, Any]) -> None:
        """Like `update`, but leaves alone what has been set already."""
        self._assign(self._translated(mapping), weaker_than=self._given)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Set `key` if nothing has set it yet; the value it has then."""
        if not self.value_set_for(key):
            self[key] = default
        return self[key]

    def __delitem__(self, key: str) -> None:
        """Put `key` back to its default."""
        name = self._known(key)
        if name is None:
            raise KeyError(key)
        if name in TABLE:
            default = _fresh(TABLE[name].default)
            _check_urls({**vars(self), name: default})
            vars(self)[name] = default
        else:
            del vars(self)[name]
        self._explicit.discard(name)
        self._given.discard(name)
        self.revision += 1

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"no setting is named {name!r}{suggestion(name)}") from None

    def copy(self) -> Settings:
        """The same settings, to be changed apart from these."""
        twin = Settings()
        vars(twin).update((name, _fresh(value)) for name, value in self.items())
        twin._explicit, twin._given, twin._said = set(self._explicit), set(self._given), set(self._said)
        return twin

    __copy__ = copy

    def check(self) -> None:
        """Check again what dicts and lists may have become in place, e.g. `beat_schedule`."""
        for name, value in self.changed().items():
            self._accepted(name, value)

    def load_environment(self, environ: Mapping[str, str]) -> None:
        """Take what `environ` says, unless it has been set already by the program.

        Read are ``CELERY_BROKER_URL``, ``…_BROKER_READ_URL``, ``…_BROKER_WRITE_URL`` and
        ``…_RESULT_BACKEND``, and with ``MINICELERY_`` in front every setting that text can say.
        """
        origins: dict[str, str] = {}
        for variable in sorted(environ):  # CELERY_ before MINICELERY_, which wins
            prefix, _, rest = variable.partition("_")
            name = rest.lower()
            if name in (TABLE if prefix == "MINICELERY" else _FROM_ENVIRONMENT if prefix == "CELERY" else ()):
                origins[name] = variable
        parsed = {name: _parsed(name, variable, environ[variable]) for name, variable in origins.items()}
        self._assign(
            {name: value for name, value in parsed.items() if value != ""},
            weaker_than=self._explicit,
            origins=origins,
        )

    # -- how -------------------------------------------------------------------------------

    def _known(self, key: str) -> str | None:
        """The name under which `key` is kept; warns of old names."""
        if key in vars(self):
            return key
        if (name := namespaced(key)) is None and (name := renamed(key)) is not None:
            self._say(key, f"the setting {key!r} is now called {name!r}", RenamedSetting)
        return name

    def _translated(self, given: Mapping[str, Any]) -> dict[str, Any]:
        strict = given.get("strict_config", given.get("CELERY_STRICT_CONFIG", self.strict_config))
        old: dict[str, Any] = {}
        prefixed: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for key, value in given.items():
            if key in TABLE:
                plain[key] = value
            elif (name := namespaced(key)) is not None:
                prefixed[name] = value
            elif is_foreign(key):
                continue
            elif (name := self._known(key)) is not None:
                old[name] = value
            else:
                self._say_unknown(key, strict=strict is True)
                plain[key] = value
        return {**old, **prefixed, **plain}

    def _assign(
        self,
        values: Mapping[str, Any],
        *,
        weaker_than: set[str] | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        accepted = {
            name: self._accepted(name, value, (origins or {}).get(name))
            for name, value in values.items()
            if weaker_than is None or name not in weaker_than
        }
        if not accepted:
            return
        _check_urls({**vars(self), **accepted})
        vars(self).update(accepted)
        self._given.update(accepted)
        if weaker_than is None:
            self._explicit.update(accepted)
        self.revision += 1

    def _accepted(self, name: str, value: Any, origin: str | None = None) -> Any:
        row = TABLE.get(name)
        if row is None:
            return value
        value = _converted(row, value, origin or name)
        if row.served is not True and value != row.default:
            if row.refused:
                raise ImproperlyConfigured(f"{origin or name} is known but not served: {row.served}")
            self._say_unserved(name, f"{name} is known but not served by this version: {row.served}")
        if name in _CONTENT and value:
            self._say_unserved_content(name, value)
        if name in _OPTIONS and "visibility_timeout" in value:
            text = "is accepted but not needed: a worker renews its hold on messages as long as it lives"
            self._say_unserved(f"{name}.visibility_timeout", f"{name}['visibility_timeout'] {text}")
        return value

    def _say_unserved_content(self, name: str, value: tuple[str, ...]) -> None:
        from minicelery.serialization import SERVED, accepted

        for content in value:
            if not accepted((content,)) <= accepted(SERVED):
                text = f"{name}: {content!r} is known but not served by this version: it is never read"
                self._say_unserved(f"{name}.{content}", text)

    def _say_unserved(self, topic: str, text: str) -> None:
        self._say(topic, f"{text}; it has no effect", UnservedSetting)

    def _say_unknown(self, key: str, *, strict: bool | None = None) -> None:
        text = f"unknown setting {key!r}{suggestion(key)}"
        if self.strict_config if strict is None else strict:
            raise ImproperlyConfigured(text)
        self._say(key, text, UnknownSetting)

    def _say(self, topic: str, text: str, category: type[Warning]) -> None:
        if topic not in self._said:
            self._said.add(topic)
            _warn(text, category)


# -- values --------------------------------------------------------------------------------


def masked(name: str, value: Any) -> Any:
    """The value of the setting `name` without what may be a secret, also inside of it."""
    if _SECRET.search(name) and not _NOT_SECRET.search(name) and value not in (None, ""):
        return "**"
    if isinstance(value, Mapping):
        return {key: masked(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(masked("", inner) for inner in value) if type(value) in (list, tuple) else repr(value)
        )
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    if "://" not in text:
        return text
    from minicelery.broker.url import mask_url

    return mask_url(text)


def _converted(row: Setting, value: Any, origin: str) -> Any:
    if value is None and row.kind.takes_none:
        return None
    try:
        return row.kind.convert(value)
    except (ValueError, TypeError) as error:
        hint = f"; {error}" if isinstance(error, ValueError) and str(error) else ""
        raise ImproperlyConfigured(
            f"{origin}: expected {row.kind.expected}, got {_shown(row, value)}{hint}"
        ) from error


def _shown(row: Setting, value: Any) -> str:
    """`value` for an error: its type alone where the text might hold a secret."""
    plain = value is None or isinstance(value, (str, int, float))
    is_url = row.kind in (BROKER_URL, STORE_URL)
    if not plain or (is_url and not (isinstance(value, str) and "://" in value)):
        return f"a value of type {type(value).__name__}"
    return repr(masked(row.name, value))[:100]


def _parsed(name: str, variable: str, text: str) -> Any:
    parse = TABLE[name].kind.parse
    if parse is None:
        raise ImproperlyConfigured(f"{variable}: {name} can't be said in an environment variable")
    return parse(text)


def _fresh(value: Any) -> Any:
    """`value`, its dicts and lists copied."""
    if type(value) is dict:
        return {key: _fresh(inner) for key, inner in value.items()}
    return list(map(_fresh, value)) if type(value) is list else value


def _differs(name: str, value: Any) -> bool:
    if name not in TABLE:
        return True
    default = TABLE[name].default
    return value is not None if default is None else bool(value != default)


def _check_urls(values: Mapping[str, Any]) -> None:
    for name in ("broker_read_url", "broker_write_url"):
        if values[name] not in (None, values["broker_url"]):
            raise ImproperlyConfigured(
                f"{name}={masked(name, values[name])!r} differs from "
                f"broker_url={masked('broker_url', values['broker_url'])!r}; "
                "different brokers to read from and write to are not served yet: set broker_url alone"
            )


def _warn(text: str, category: type[Warning]) -> None:
    """Warn at the line outside of this package that brought us here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("minicelery."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


# -- time zones ----------------------------------------------------------------------------


def _zone(name: str) -> tzinfo:
    from minicelery.schedules.clock import zone_of

    try:
        return zone_of(name, "timezone")
    except ValueError as error:
        raise ImproperlyConfigured(str(error)) from error


@lru_cache
def _local_zone() -> tzinfo:
    from zoneinfo import ZoneInfo

    try:
        if name := os.environ.get("TZ", "").lstrip(":"):
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, key="localtime")
    except (KeyError, ValueError, OSError):
        return datetime.now().astimezone().tzinfo or timezone.utc
