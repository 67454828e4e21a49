"""Medians, spreads and ratios, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import Peer
from benchmarks.rows import Row

SUBJECT = "minicelery"
CLIENTS = {
    "redis": ("kombu", "taskiq-redis"),
    "rabbitmq": ("kombu", "amqp", "pika", "taskiq-aio-pika", "aio-pika"),
}
"""Distributions whose versions matter on a broker, beside the peer's own and Redis' clients."""


@dataclass
class Report:
    """What a run has measured on one broker: row, then peer, then one value a round."""

    broker: str
    rows: Sequence[Row]
    peers: Sequence[Peer]
    machine: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, peer: str, round_number: int, value: float) -> None:
        self.values.setdefault(row, {}).setdefault(peer, {})[round_number] = value

    def ratios(self, row: Row, peer: str, peer_row: str = "") -> list[float]:
        """How many times better the subject did than `peer` (at `peer_row`), round by round."""
        ours = self.values.get(row.name, {}).get(SUBJECT, {})
        theirs = self.values.get(peer_row or row.name, {}).get(peer, {})
        pairs = [(ours[number], theirs[number]) for number in ours if number in theirs]
        if any(mine <= 0 or other <= 0 for mine, other in pairs):
            return []
        return [mine / other if row.more_is_better else other / mine for mine, other in pairs]

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "options": self.options,
            "settings": {peer.name: peer.settings for peer in self.peers},
            "versions": self.versions,
            "rows": {row.name: self._row_json(row) for row in self.rows},
            "failures": self.failures,
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        measured = self.values.get(row.name, {})
        return {
            "title": row.title,
            "unit": row.unit,
            "more_is_better": row.more_is_better,
            "peers": {
                peer: {"rounds": list(rounds.values()), **_summary(list(rounds.values()))}
                for peer, rounds in measured.items()
            },
            "times_better": {
                peer: _summary(ratios)
                for peer in measured
                if peer != SUBJECT and (ratios := self.ratios(row, peer))
            },
        }

    def markdown(self) -> str:
        """The whole report: machine, figures, ratios, floor, settings, failures."""
        libraries = [peer for peer in self.peers if not peer.name.startswith("floor")]
        floors = [peer for peer in self.peers if peer.name.startswith("floor")]
        parts = [self._machine_text()]
        parts += self._section("Figures", "median (least–most)", libraries, self._figure)
        others = [peer for peer in libraries if peer.name != SUBJECT]
        if SUBJECT in {peer.name for peer in libraries}:
            note = f"how many times better {SUBJECT} is, round by round: median (least–most)"
            parts += self._section("Ratios", note, others, self._ratio)
            note = f"{SUBJECT}'s figure as a share of the floor's, round by round: median (least–most)"
            parts += self._section("Share of the floor", note, floors, self._share)
        parts += self._section("The floor", "the same Redis work without a library", floors, self._figure)
        parts += [self._settings_text(), self._failures_text()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _section(self, title: str, note: str, peers: Sequence[Peer], cell: Any) -> list[str]:
        table = _table(self.rows, peers, cell)
        return [f"## {title}", f"{note[0].upper()}{note[1:]}.", table] if table else []

    def _figure(self, row: Row, peer: Peer) -> str:
        values = list(self.values.get(row.name, {}).get(peer.name, {}).values())
        return spread(values, lambda value: "> " * (value >= row.longest) + number(value, row.unit))

    def _ratio(self, row: Row, peer: Peer) -> str:
        waited = self.values.get(row.name, {}).get(peer.name, {}).values()
        at_least = "> " * any(value >= row.longest for value in waited)
        return spread(self.ratios(row, peer.name), lambda ratio: at_least + times(ratio))

    def _share(self, row: Row, peer: Peer) -> str:
        return spread(self.ratios(row, peer.name), lambda ratio: f"{100 * ratio:.0f} %")

    def _machine_text(self) -> str:
        facts = " · ".join(f"{name} {value}" for name, value in self.machine.items())
        options = " · ".join(f"{name} {value}" for name, value in self.options.items())
        return f"# Benchmark on {self.broker}\n\n{facts}\n\n{options}"

    def _settings_text(self) -> str:
        lines = ["## Settings", "", "Two worker processes each, defaults where nothing is said.", ""]
        for peer in self.peers:
            installed = self.versions.get(peer.name, {})
            names = (peer.name, *CLIENTS[self.broker], "redis", "hiredis")
            shown = [f"{name} {installed[name]}" for name in names if name in installed]
            lines.append(f"- **{peer.name}** ({', '.join(shown)}): {peer.settings}")
        return "\n".join(lines)

    def _failures_text(self) -> str:
        if not self.failures:
            return ""
        return "\n".join(["## Not measured", "", *(f"- {failure}" for failure in self.failures)])


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Median (least–most); empty without values."""
    if not values:
        return ""
    figures = _summary(values)
    around = f" ({text(figures['min'])}–{text(figures['max'])})" if len(values) > 1 else ""
    return text(figures["median"]) + around


def times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"


def number(value: float, unit: str) -> str:
    if unit == "1/s":
        return f"{value:,.0f}"
    if unit == "ms":
        value *= 1000
        return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _table(rows: Sequence[Row], peers: Sequence[Peer], cell: Any) -> str:
    """A Markdown table without the rows and columns that would be empty; empty text without any."""
    cells = {(row.name, peer.name): cell(row, peer) for row in rows for peer in peers}
    columns = [peer for peer in peers if any(cells[row.name, peer.name] for row in rows)]
    lines = []
    for row in rows:
        texts = [cells[row.name, peer.name] for peer in columns]
        if any(texts):
            lines.append(f"| {row.title}, {row.unit} | " + " | ".join(text or "–" for text in texts) + " |")
    if not lines:
        return ""
    head = "| | " + " | ".join(peer.name for peer in columns) + " |"
    return "\n".join([head, "| --- |" + " ---: |" * len(columns), *lines])
