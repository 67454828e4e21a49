"""Remote control, in the agent's process: hears requests, answers from what the agent knows.

A thread of its own, so that neither a busy child nor the agent's other duties keep anybody
waiting.  Commands of the app's own run in further threads, as nobody knows how long they take.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minicelery.broker.post import Letter, Listening
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.remote import steering
from minicelery.remote.client import times_of
from minicelery.remote.registry import Panel
from minicelery.remote.request import Request, decode_request, encode_reply, requests_box
from minicelery.remote.silence import PRESENCE, PRESENT_FOR
from minicelery.worker.board import Board
from minicelery.worker.orders import CHANGE
from minicelery.worker.station import State, Station

if TYPE_CHECKING:
    from minicelery.worker import Worker
    from minicelery.worker.agent import Agent

log = logging.getLogger(__name__)

SHOW_EVERY = 60.0
"""Seconds between two notes in the broker that this worker is there."""
SLOWEST_RECONNECT = 5.0
OWN_AT_ONCE = 8
"""Commands of the app's own that may run at once."""
REMEMBERED = 1024
"""Orders that are known, should they come again."""
LONGEST_REMEMBERED = 4096
"""Bytes of a reply that is kept for that; one of an order with a longer reply is passed over."""
STEADY = 10.0
"""Seconds after which a connection is taken to be a good one."""
COMPLAIN_EVERY = 60.0


def attach(worker: Worker, agent: Agent) -> None:
    """Give the agent its remote control, where the settings have one."""
    if worker.app.conf.worker_enable_remote_control:
        agent.remote = Remote(Station(worker, agent, worker.changes))


def obey_alone(order: str, loop_orders: int, board: Board) -> None:
    """Obey what remote control orders of a worker that is one process, without a parent."""
    details = json.loads(order)
    if details["what"] == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    elif details["what"] == "change":
        topic, _, value = change = details["change"]
        if topic == "events":
            board.head = replace(board.head, events=bool(value))
        os.write(loop_orders, CHANGE + json.dumps(change).encode() + b"\n")


class Remote:
    """Answers requests until it is stopped; through outages."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self._ended = threading.Event()
        self._listening: Listening | None = None
        self._thread = threading.Thread(target=self._run, name="minicelery-remote", daemon=True)
        self._outage = 0
        self._show_at = 0.0
        self._complained: dict[str, float] = {}
        self._obeyed: OrderedDict[str | None, Any] = OrderedDict()  # ticket -> reply, of orders
        self._own = threading.BoundedSemaphore(OWN_AT_ONCE)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; what is being answered is, within two seconds."""
        self._ended.set()
        if (listening := self._listening) is not None:
            listening.wake()
        if self._thread.is_alive():
            self._thread.join(2.0)

    # -- listening -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._listen()
            except OperationalError as error:
                self._pause(error)
            except Exception as error:
                log.exception("remote control")
                self._pause(error)
        with contextlib.suppress(OperationalError):
            self._note(" stopped")

    def _listen(self) -> None:
        station = self.station
        conf = station.app.conf
        box = requests_box(station.hostname, conf.control_exchange, **times_of(conf))
        with station.app.broker.post.listen([box]) as self._listening:
            if self._outage:
                log.info("Remote control is back")
            steady_at = time.monotonic() + STEADY
            while not self._ended.is_set():
                if self._outage and time.monotonic() >= steady_at:
                    self._outage = 0
                self._show()
                self._answer_all(self._listening.take(max(0.1, min(30.0, self._show_at - time.monotonic()))))

    def _pause(self, error: Exception) -> None:
        if self._outage % 60 == 0:
            log.warning("No remote control for now: %s", error)
        ceiling = min(SLOWEST_RECONNECT, 0.1 * 2.0 ** min(self._outage, 6))
        self._outage += 1
        self._ended.wait(random.uniform(ceiling / 2, ceiling))

    def _show(self) -> None:
        """Note in the broker that this worker is there, for who gets no answer later."""
        now = time.monotonic()
        if now >= self._show_at:
            self._show_at = now + SHOW_EVERY
            try:
                self._note()
            except OperationalError as error:  # a full server may pass letters on all the same
                self._complain("nobody can read later that this worker was here", error)

    def _note(self, what: str = "") -> None:
        broker = self.station.app.broker
        if getattr(broker, "has_cheap_notes", True):
            text = f"{time.time():.0f}{what}"
            broker.remember(PRESENCE, self.station.hostname, PRESENT_FOR, text.encode())

    # -- answering -------------------------------------------------------------------------

    def _answer_all(self, letters: Sequence[Letter]) -> None:
        replies = []
        for letter in letters:
            try:
                reply = self._answer(letter)
            except Exception as error:  # nobody else's question is to go with it
                self._complain("a request can't be answered", error)
                continue
            if reply is not None:
                replies.append(reply)
        if replies:
            self._send(replies)

    def _send(self, replies: Sequence[Letter]) -> None:
        try:
            self.station.app.broker.post.send(replies)
        except OperationalError as error:
            self._complain("replies can't be sent", error)
            if len(replies) > 1 and not isinstance(error, BrokerUnavailable):
                for reply in replies:  # what is wrong with one must not keep the others back
                    self._send([reply])

    def _answer(self, letter: Letter) -> Letter | None:
        self.station.app.clock.adjust(letter.headers.get("clock"))
        try:
            request = decode_request(letter.content)
            if not request.is_for(self.station.hostname):
                return None
        except ValueError as error:
            self._complain("a request that is none is passed over", error)
            return None
        name, ticket = request.method, request.ticket
        if ticket is not None and Panel.types.get(name) == "control":
            if ticket in self._obeyed:
                return self._encoded(request, self._obeyed[ticket])
            self._obeyed[ticket] = steering.NO_REPLY
            while len(self._obeyed) > REMEMBERED:
                self._obeyed.popitem(last=False)
        if name in Panel and not Panel.is_builtin(name):
            self._do_apart(request)
            return None
        return self._reply(request, self._do(request))

    def _reply(self, request: Request, value: Any) -> Letter | None:
        """The reply; that to an order is kept."""
        reply = self._encoded(request, value)
        if reply is not None and request.ticket in self._obeyed and len(reply.body) <= LONGEST_REMEMBERED:
            self._obeyed[request.ticket] = value
        return reply

    def _encoded(self, request: Request, value: Any) -> Letter | None:
        """What is to be sent; None where no reply is wanted, or none is given."""
        if value is steering.NO_REPLY or request.reply_to is None:
            return None
        return encode_reply(self.station.hostname, value, request, self.station.app.clock.forward())

    def _do(self, request: Request) -> Any:
        """Run a command; what it raises becomes the reply that Celery gives."""
        name = request.method
        if name not in Panel:
            self._complain("a command that is not known is passed over", KeyError(name))
            return {"error": repr(KeyError(name))[:1024]}
        try:
            return Panel[name](State(self.station, request), **request.arguments)
        except Exception as error:
            self._complain(f"{name} failed", error)
            return {"error": repr(error)[:1024]}

    def _do_apart(self, request: Request) -> None:
        """Run a command of the app's own in a thread."""

        def do() -> None:
            try:
                reply = self._reply(request, self._do(request))
            finally:
                self._own.release()
            if reply is not None:
                self._send([reply])

        if self._own.acquire(blocking=False):
            threading.Thread(target=do, name=f"minicelery-{request.method:.40}", daemon=True).start()
            return
        refused = {"error": f"{OWN_AT_ONCE} commands of the app's own run already"}
        if (reply := self._reply(request, refused)) is not None:
            self._send([reply])

    def _complain(self, what: str, error: Exception) -> None:
        """Tell of what others have sent: once a minute of each kind, and in one line."""
        now = time.monotonic()
        if now - self._complained.get(what, float("-inf")) > COMPLAIN_EVERY:
            self._complained[what] = now
            log.warning("Remote control: %s: %s: %.500r", what, type(error).__name__, str(error))
