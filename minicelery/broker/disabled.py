"""No result store."""

from __future__ import annotations

from typing import Any, NoReturn

from minicelery.exceptions import ImproperlyConfigured


class DisabledBackend:
    """Stands where no `result_backend` is set: every use says so."""

    url = "disabled://"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ImproperlyConfigured(
            "no result backend is configured, so the state of tasks is unknown; "
            'set result_backend, e.g. Celery(backend="redis://localhost/0") or backend="sqlite:///results.db"; '
            'where the broker is RabbitMQ, backend="rpc://" needs no other server'
        )

    load = watch = forget = _refuse

    def store(self, records: Any) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""
