"""Periodic tasks of an app: what beat sends, and `app.add_periodic_task`."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minicelery.beat.stored import StoredSchedule
    from minicelery.settings import Settings
    from minicelery.signals import Signal

log = logging.getLogger(__name__)

_BEAT = "minicelery.beat:Beat"
_SCHEDULE = "minicelery.beat.stored:StoredSchedule"


class Periodic:
    """The part of `Celery` that knows its periodic tasks."""

    conf: Any
    on_after_configure: Signal
    _settings: Settings | None

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **opts: Any,
    ) -> str:
        """Have beat send `sig`, a signature or a task, by `schedule`; returns the entry's name.

        `args` and `kwargs` are added to the signature's own, `opts` to its options.  Without `name`
        the signature's text is the name.
        """
        signature = _signature(sig, args, kwargs or {})
        key = name or repr(signature)
        if not name and key in self._periodic:
            log.warning("Periodic task %s is added twice: give each a name=, or the last one counts", key)
        self._periodic[key] = {
            "schedule": schedule, "task": signature["task"], "args": signature["args"],
            "kwargs": signature["kwargs"], "options": {**signature["options"], **opts},
        }  # fmt: skip
        if self._settings is not None:
            self._settings.beat_schedule[key] = self._periodic[key]
        return key

    @property
    def _periodic(self) -> dict[str, Any]:
        """The entries that were added, by name; they outlive a `beat_schedule` assigned later."""
        found: dict[str, Any] = vars(self).setdefault("_periodic_entries", {})
        return found

    def periodic_entries(self) -> dict[str, Any]:
        """Every entry by its name, as it was written: those of `beat_schedule`, and those added."""
        configured = self.conf.beat_schedule
        self._tell_configured()  # who adds entries
        return {**self._periodic, **configured}

    def _tell_configured(self) -> None:
        """Tell who listens, once each: also those who began to after something had used the settings."""
        if self._settings is not None and self.on_after_configure.receivers:
            self.on_after_configure.send_once(sender=self, source=self._settings)

    @property
    def Beat(self) -> Any:  # noqa: N802 - Celery's name
        """This app's beat: ``app.Beat().run()``."""
        return functools.partial(_load(_BEAT), app=self)

    @property
    def schedule(self) -> StoredSchedule:
        """The entries that can be listed and changed while beats run."""
        found: StoredSchedule | None = vars(self).get("_stored_schedule")
        if found is None:
            found = vars(self).setdefault("_stored_schedule", _load(_SCHEDULE)(self))
        return found


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _signature(sig: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if hasattr(sig, "apply_async") and not isinstance(sig, Mapping):  # a task
        return sig.signature(args=tuple(args), kwargs=dict(kwargs))
    if isinstance(sig, Mapping):
        clone = getattr(sig, "clone", None)
        if clone is None:
            from minicelery.canvas import signature

            clone = signature(sig).clone
        return clone(tuple(args), dict(kwargs))
    raise TypeError(
        f"add_periodic_task takes a schedule, then a signature or a task, such as 10.0, add.s(2, 2); "
        f"not the {type(sig).__name__} {sig!r:.80}"
    )
