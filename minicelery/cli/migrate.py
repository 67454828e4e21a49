"""`minicelery migrate`: messages from one broker to another."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicelery.cli import ui
from minicelery.cli.choosing import known_queues, no_question, queue_list
from minicelery.cli.session import Session, common_options, from_here
from minicelery.exceptions import MiniCeleryError
from minicelery.message import Delivery, Message, Outcome, parse_time
from minicelery.pausing import aside

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.broker import Broker
    from minicelery.settings import Settings

BATCH = 100
HOLDER = "migrate"
"""Who holds what is on its way: always the same, so that the next one finds what a killed one held."""
NOBODY = "migrate/nobody"
MOST = 100_000
"""Messages of a queue that are held at once where they stay in the source."""
_TAKEN = ("task_queues", "task_default_queue", "task_routes", "task_default_queue_type")
"""Settings of the app that both ends have."""


@click.command(short_help="Move messages from one broker to another.")
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@common_options()
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="Of each queue so many at most.")
@click.option("-a", "--ack-messages", is_flag=True, help="Take them out of the source: move, don't copy.")
@click.option("-T", "--tasks", multiple=True, callback=queue_list, metavar="LIST", help="These tasks only.")
@click.option(
    "-Q", "--queues", multiple=True, callback=queue_list, metavar="LIST",
    help="These queues; old:new gives one another name.",
)  # fmt: skip
@click.option("-t", "--timeout", type=float, hidden=True, expose_value=False)
@no_question
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def migrate(
    session: Session, /, *, source: str, destination: str, limit: int | None, ack_messages: bool,
    tasks: Sequence[str], queues: Sequence[str], force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Copy the messages that wait in the broker SOURCE to the broker DESTINATION; -a moves them.

    Both are URLs.  The queues are those of the app, where -A names one or there is one here, and
    celery otherwise.  Messages that wait for their time are moved when it has come.
    """
    _check_there_is(source)
    conf = _conf(session)
    with _open(source, conf) as here, _open(destination, conf) as there:
        if here.broker.place == there.broker.place and here.broker.url == there.broker.url:
            raise ui.CommandError("the two brokers are one and the same", exit_code=ui.USAGE)
        names = [_pair(name) for name in queues] or [(name, name) for name in known_queues(here)]
        if not force and not as_json:
            for name, _ in names:
                ui.say(f"{name}: {ui.counted(here.broker.size(name), 'message')}")
            ui.ask(f"{'Move' if ack_messages else 'Copy'} them from {here.broker.url} to {there.broker.url}?")
        done = {
            name: _transfer(here.broker, there.broker, name, new, limit or MOST, tasks, ack_messages)
            for name, new in names
        }
        left = {name: _left(here.broker, name) for name, _ in names}
    if as_json:
        delayed = {name: count for name, of_queue in left.items() if (count := of_queue["delayed"])}
        ui.say_json({"messages": done, "delayed": delayed, "left": left})
        return 0
    for name, count in done.items():
        ui.say(f"{'Moved' if ack_messages else 'Copied'} {ui.counted(count, 'message')} of {name}.")
        for what, number in left[name].items():
            if number:
                stay, why = ("stays", _WHY[what][0]) if number == 1 else ("stay", _WHY[what][1])
                session.note(f"{ui.counted(number, 'message')} of {name} {stay}: {why}")
    return 0


_WHY = {
    "delayed": ("it waits for its time; come again then", "they wait for their time; come again then"),
    "held": ("its task is paused; minicelery resume", "their tasks are paused; minicelery resume"),
    "dead": ("it is a dead letter; minicelery dead replay", "they are dead letters; minicelery dead replay"),
}


def _left(broker: Broker, name: str) -> dict[str, int]:
    """What is of a queue and not in it."""
    return {
        "delayed": broker.delayed(name) or 0, "held": broker.size(aside(name)), "dead": broker.dead(name)
    }  # fmt: skip


def _check_there_is(source: str) -> None:
    path = from_here(source).removeprefix("sqlite:///")
    if source.startswith("sqlite:///") and not os.path.exists(path):
        raise ui.CommandError(f"there is no file {path} to take messages from", exit_code=ui.USAGE)


def _conf(session: Session) -> Settings | None:
    """The settings of the app that -A names, or that is here."""
    from minicelery.cli.find_app import guess_app

    if session.app_name is not None or guess_app(Path.cwd(), os.environ) is not None:
        return session.app().conf
    return None


def _open(url: str, conf: Settings | None) -> Celery:
    """An app on the broker at `url`, with the same queues."""
    from minicelery.app import Celery

    app = Celery("migrate", broker=from_here(url), set_as_current=False)
    if conf is not None:
        app.conf.update({name: conf[name] for name in _TAKEN if conf[name]})
    return app


def _pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition(":")
    return old, new or old


def _transfer(
    here: Broker, there: Broker, name: str, new: str, limit: int, tasks: Sequence[str], move: bool
) -> int:
    """Send what waits in a queue of `here` to a queue `there`: sent first, taken out then."""
    consumer = here.consumer([name], HOLDER, None)
    count, seen = 0, 0
    total = here.size(name)
    try:
        # What one that was killed has held comes first; nobody else may be there to give it back.
        fresh = consumer.adopt(NOBODY) if consumer.adopts else []
        total += len(fresh)
        while seen < total and count < limit:
            fresh = fresh or consumer.swap([], min(BATCH, limit - count), 0.0)
            if not fresh:
                break
            seen += len(fresh)
            # What is not wanted, or stays, is held until the end: else it would come again at once.
            wanted = [one for one in fresh if not tasks or one.message.task in tasks]
            readable = [one for one in wanted if one.broken is None][: limit - count]
            there.publish([_for(one, new) for one in readable])
            count += len(readable)
            if move:
                consumer.swap([Outcome(one) for one in readable], 0, 0.0)
            fresh = []
    except MiniCeleryError as error:
        text, hint = ui.split_hint(error)
        raise ui.CommandError(f"{text}, after {ui.counted(count, 'message')} of {name}", hint=hint) from error
    finally:
        consumer.close()
    return count


def _for(delivery: Delivery, queue: str) -> Message:
    message = delivery.message
    eta = message.headers.get("eta")
    due = None if eta is None else parse_time(eta, "eta")
    if due is not None and due <= time.time():
        due = None
    return replace(message, queue=queue, exchange="", routing_key=queue, due=due)
