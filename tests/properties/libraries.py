"""Compositions as signatures, of either library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from tests.properties.compositions import Call, Chain, Chord, Each, Group, Node, Partial


@dataclass
class Library:
    """One of the two: its names, and an app with the tasks."""

    app: Any
    chain: Any
    group: Any
    chord: Any
    signature: Any
    xmap: Any
    xstarmap: Any
    chunks: Any
    prefix: str = ""  # of the ids of what is called back

    def made(self, node: Node) -> Any:
        """The composition, of this library's signatures."""
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, Each):
            said = self.app.tasks["say"].s(name=node.name)
            if node.kind == "map":
                return self.xmap(said, node.items)
            items = [(item,) for item in node.items]
            return self.chunks(said, items, 2) if node.kind == "chunks" else self.xstarmap(said, items)
        if isinstance(node, Chain):
            links = [self.made(link) for link in node.links]
            if node.how == "|":
                return reduce(lambda one, two: one | two, links)
            return self.chain(*links) if node.how == "chain" else self.chain(links, app=self.app)
        if isinstance(node, Group):
            return self.group([self.made(one) for one in node.members], app=self.app)
        if isinstance(node, Chord):
            return self.chord([self.made(one) for one in node.header], self.made(node.body), app=self.app)
        whole = self.made(node.whole)
        if isinstance(node, Partial):
            return whole.clone(node.args)
        whole.link(self.made(node.callback).set(task_id=self.id(node.key)))
        return whole

    def _call(self, call: Call) -> Any:
        made = self.signature(
            call.kind, call.args, {"name": call.name}, immutable=call.immutable, app=self.app
        )
        for at, link in enumerate(call.links):
            made.link(self.made(link).set(task_id=self.id(f"{call.key}.{at}")))
        if call.errback:
            errback = self.signature("heard", (), {"key": call.key}, app=self.app)
            made.link_error(errback.set(task_id=self.id(f"{call.key}.errback")))
        return made

    def id(self, key: str) -> str:
        """The id of what is linked under that key."""
        return f"{self.prefix}{key}"
