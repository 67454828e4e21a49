"""`minicelery list`: the queues, what waits in them, and the exchanges that feed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from minicelery.broker.topology import plain_queue
from minicelery.cli import ui
from minicelery.cli.choosing import as_json, note_unknown_queues, queue_names, which_queues
from minicelery.cli.session import Session, common_options

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.broker import Broker


@dataclass(frozen=True, slots=True)
class BindingRow:
    """An exchange that feeds a queue."""

    queue: str
    exchange: str  # empty: the server's own
    exchange_type: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class QueueRow:
    """What is in a queue; None where the broker can't tell."""

    queue: str
    ready: int
    delayed: int | None
    dead: int | None
    consumers: int | None


@click.group(
    "list", invoke_without_command=True, short_help="Show queues, what is in them, and how they are bound."
)
@common_options()
@click.pass_context
def listing(context: click.Context) -> int | None:
    """Show the app's queues: what is in them, and how they are bound."""
    if context.invoked_subcommand is None:
        ui.say(context.get_help())
        return ui.USAGE
    return None


@listing.command("queues", short_help="What is in each queue.")
@common_options()
@which_queues
@as_json
@click.pass_obj
def list_queues(session: Session, /, *, queues: Sequence[str], as_json: bool) -> int:
    """Print how many messages of each queue are ready, delayed and dead."""
    app = session.app()
    note_unknown_queues(session, app, queues)
    _print([asdict(counted(app.broker, name)) for name in queues or queue_names(app.conf)], as_json)
    return 0


@listing.command("bindings", short_help="Which exchanges feed which queue.")
@common_options()
@which_queues
@as_json
@click.pass_obj
def list_bindings(session: Session, /, *, queues: Sequence[str], as_json: bool) -> int:
    """Print the exchanges and routing keys of each queue, and what is in it.

    On Redis, queues that Celery has bound are among them.
    """
    app = session.app()
    rows = _configured(app, queues or queue_names(app.conf))
    rows += _bound_by_celery(session, app, rows, queues)
    names = dict.fromkeys(row.queue for row in rows)
    counts = {name: asdict(counted(app.broker, name)) for name in names}
    _print(
        [{**asdict(row), **counts[row.queue]} for name in names for row in rows if row.queue == name], as_json
    )
    return 0


def _configured(app: Celery, names: Iterable[str]) -> tuple[BindingRow, ...]:
    """The bindings of the settings; a queue they don't know is bound as Celery would bind it."""
    known = app._sender.router.queues
    rows: tuple[BindingRow, ...] = ()
    for name in names:
        bindings = (known.get(name) or plain_queue(name)).bindings
        rows += tuple(
            BindingRow(name, bound.exchange.name, bound.exchange.type, bound.key) for bound in bindings
        ) or (BindingRow(name, "", "direct", name),)
    return rows


def _bound_by_celery(
    session: Session, app: Celery, known: Sequence[BindingRow], only: Sequence[str]
) -> tuple[BindingRow, ...]:
    """What the broker knows of others' bindings, but those of events and remote control."""
    read: Any = getattr(app.broker, "bindings", None)
    if read is None:
        return ()
    found, complete = read()
    if not complete:
        session.note(
            "the server has too many keys to look for all that Celery has bound; name queues with -Q"
        )
    types = {row.exchange: row.exchange_type for row in known}
    there = {(row.queue, row.exchange, row.routing_key) for row in known}
    return tuple(
        BindingRow(queue, exchange, types.get(exchange, kind), key)
        for queue, exchange, kind, key in found
        if (queue, exchange, key) not in there
        and (queue in only if only else exchange != "celeryev" and not exchange.endswith(".pidbox"))
    )


def counted(broker: Broker, queue: str) -> QueueRow:
    """What is in a queue."""
    consumers: Any = getattr(broker, "consumers", None)
    return QueueRow(
        queue,
        broker.size(queue),
        broker.delayed(queue),
        broker.dead(queue),
        None if consumers is None else consumers(queue),
    )


def _print(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        ui.say_json(rows)
        return
    shown = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    ui.say(
        ui.table(
            [name.replace("_", " ") for name in shown],
            [[_cell(row[name]) for name in shown] for row in rows],
        )
    )


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return ui.harmless(value) or "-"
    return "-" if value is None else value
