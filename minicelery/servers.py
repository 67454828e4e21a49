"""How an app reaches its servers: broker, result store, and what stands for a connection to them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module as _import
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from minicelery.broker import OWN_STORES, Backend, Broker, open_backend, open_broker, open_replies
from minicelery.clock import Clock
from minicelery.exceptions import OperationalError
from minicelery.result import DisabledBackend

if TYPE_CHECKING:
    from minicelery.events import Events
    from minicelery.sending import Sender
    from minicelery.settings import Settings

DEFAULT_BROKER = "amqp://"


class Servers:
    """The part of `Celery` that opens its servers, each at its first use."""

    conf: Any
    _lock: threading.RLock
    _home: Path
    _sender: Sender
    _broker: Broker | None = None
    _backend: Backend | DisabledBackend | None = None

    @property
    def broker(self) -> Broker:
        """The broker that `broker_url` names; connects when it is used."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    conf = self.conf
                    url = self._placed(conf.broker_url or DEFAULT_BROKER)
                    options = {
                        "connection_timeout": conf.broker_connection_timeout,
                        "pool_limit": conf.broker_pool_limit,
                        "use_ssl": conf.broker_use_ssl,
                        "lease": conf.worker_lease,
                        "heartbeat": conf.broker_heartbeat or 0,
                        "login_method": conf.broker_login_method,
                        "failover_strategy": conf.broker_failover_strategy,
                        "delay_queue_type": conf.broker_native_delayed_delivery_queue_type,
                        "delays": conf.broker_delays,
                        "spec_of": lambda name: self._sender.router.spec(name),
                        "bound_to": lambda name: self._sender.router.bound_to(name),
                        "exchange_of": lambda name: self._sender.router.exchange(name),
                        **conf.broker_transport_options,
                    }
                    self._broker = open_broker(url, options=options)
        return self._broker

    @property
    def backend(self) -> Backend | DisabledBackend:
        """The result store that `result_backend` names; a DisabledBackend where none is set."""
        if self._backend is None:
            with self._lock:
                if self._backend is None:
                    conf = self.conf
                    if not conf.result_backend or conf.result_backend in ("disabled", "disabled://"):
                        self._backend = DisabledBackend()
                    else:
                        self._backend = self._open_backend(conf)
        return self._backend

    def _open_backend(self, conf: Settings) -> Backend:
        url = self._placed(conf.result_backend)
        if url.partition(":")[0] == "rpc":
            return open_replies(
                self.broker, expires=conf.result_expires, persistent=conf.result_persistent,
                serializer=conf.result_serializer,
            )  # fmt: skip
        if url.partition("://")[0] not in OWN_STORES:
            # Imported where it is used: it knows apps.
            theirs: Backend | None = _import("minicelery.alias.stores").open_store(self, url)
            if theirs is not None:
                return theirs
        if url == "django-cache":
            return open_backend(url, options={"cache": conf.cache_backend})
        return open_backend(url, options=_backend_options(conf))

    def _placed(self, url: str) -> str:
        """A relative SQLite path is one of the app's directory: worker and client share a file."""
        if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
            return f"sqlite:///{self._home / url[len('sqlite:///') :]}"
        return url

    @functools.cached_property
    def events(self) -> Events:
        """What workers and clients tell of tasks: heard, sent, put together."""
        from minicelery.events import Events

        return Events(self)

    @functools.cached_property
    def clock(self) -> Clock:
        """Orders what this process tells and hears."""
        return Clock()

    # -- for programs that know Celery's apps ------------------------------------------------

    @property
    def loader(self) -> Loader:
        """Imports what the app's settings name."""
        return Loader(self)

    def connection_for_write(self, url: str | None = None, **_: Any) -> Connection:
        """A handle on the broker, as Celery's programs want one; minicelery keeps the connections."""
        return Connection(self, url)

    connection_for_read = connection = connection_for_write

    @contextmanager
    def connection_or_acquire(self, connection: Any = None, pool: bool = True) -> Iterator[Any]:
        """`connection`, or else one of the app's own, for a ``with`` statement."""
        yield connection or Connection(self)

    @contextmanager
    def producer_or_acquire(self, producer: Any = None) -> Iterator[Any]:
        """`producer`, or else one of the app's own: calls may name it, and go where all calls go."""
        yield producer or Producer(Connection(self))

    @property
    def pool(self) -> Pool:
        """Gives out connections."""
        return Pool(lambda: Connection(self))

    @property
    def producer_pool(self) -> Pool:
        """Gives out producers."""
        return Pool(lambda: Producer(Connection(self)))


class Transport(NamedTuple):
    """What a program may ask of a connection's other end."""

    driver_type: str  # "amqp", "redis", "sqlite", "memory"


class Loader(NamedTuple):
    """Imports the modules of an app's tasks, for programs that ask Celery's way."""

    app: Any

    def import_default_modules(self) -> None:
        """Import what `imports`, `include` and `autodiscover_tasks` name."""
        self.app.import_task_modules()


class Connection:
    """Stands for the app's connections to its broker, which are made and kept by the app itself."""

    leads_to_app = True
    connection_errors = recoverable_connection_errors = (OperationalError,)

    def __init__(self, app: Servers, url: str | None = None) -> None:
        if url is not None and app._placed(url) != app._placed(app.conf.broker_url or DEFAULT_BROKER):
            raise NotImplementedError(
                "an app has one broker, that of broker_url; for another one make another app: Celery(broker=…)"
            )
        self._app = app

    def ensure_connection(self, *_: Any, **__: Any) -> Connection:
        """Ask the broker for something small.  Raises OperationalError where it can't be reached."""
        self._app.broker.size(self._app.conf.task_default_queue)
        return self

    connect = ensure_connection

    @property
    def connected(self) -> bool:
        """Whether the broker answers."""
        try:
            self.ensure_connection()
        except OperationalError:
            return False
        return True

    def as_uri(self, include_password: bool = False, **_: Any) -> str:
        """The broker's URL, its password masked unless it is asked for."""
        app = self._app
        return app._placed(app.conf.broker_url or DEFAULT_BROKER) if include_password else app.broker.url

    @property
    def transport(self) -> Transport:
        """Of which kind the broker is."""
        scheme = self.as_uri().partition(":")[0].partition("+")[0]
        return Transport("amqp" if "amqp" in scheme else "redis" if scheme == "rediss" else scheme)

    def release(self) -> None:
        """Nothing: the app keeps its connections."""

    close = release

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"minicelery's connections have no {name!r}: queues are read by app.broker.size(queue), "
            "app.broker.delayed(queue) and app.broker.purge(queue)"
        )


class Producer:
    """What a call may name as ``producer=``: calls go to the app's broker in any case."""

    leads_to_app = True

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def publish(self, *_: Any, **__: Any) -> NoReturn:
        """Not served.  Raises NotImplementedError."""
        raise NotImplementedError("minicelery sends calls of tasks only: app.send_task(name, args)")

    def release(self) -> None:
        """Nothing: the app keeps its connections."""

    close = release

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Pool:
    """Gives out connections or producers; there are always more."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """One of them, for a ``with`` statement."""
        return self._make()


def _backend_options(conf: Settings) -> dict[str, Any]:
    given = {
        name: conf[f"redis_{name}"]
        for name in ("socket_timeout", "socket_connect_timeout", "username", "password", "client_name")
        if conf.value_set_for(f"redis_{name}")
    }
    return {
        "connection_timeout": conf.broker_connection_timeout,
        "use_ssl": conf.redis_backend_use_ssl,
        "pool_limit": conf.redis_max_connections,
        **given,
        **conf.result_backend_transport_options,
    }
