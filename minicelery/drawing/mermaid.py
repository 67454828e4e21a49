"""Rows as a Mermaid flowchart, for Markdown pages and terminals."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minicelery.drawing.colours import colours_of, mark_of
from minicelery.drawing.shapes import Box, Fork, Row


def flowchart(row: Row) -> str:
    """The text of the chart; it ends with a newline."""
    chart = Chart()
    chart.row(row)
    return "\n".join(["flowchart LR", *chart.nodes, *chart.edges, *chart.styles()]) + "\n"


class Chart:
    """The lines of a chart, as they come together."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.edges: list[str] = []
        self._states: dict[str, str] = {}
        self._count = 0

    def row(self, row: Row) -> tuple[str, str]:
        """Add a row; the names of the nodes that begin and end it."""
        begin = last = ""
        for part in row:
            first, end = self._fork(part) if isinstance(part, Fork) else self._box(part)
            if last:
                self.edges.append(f"  {last} --> {first}")
            begin, last = begin or first, end
        return begin, last

    def _fork(self, fork: Fork) -> tuple[str, str]:
        begin = end = self._node("([", [fork.caption], "])")
        ends = []
        for row in fork.rows:
            first, last = self.row(row)
            self.edges.append(f"  {begin} --> {first}")
            ends.append(last)
        if fork.joined:
            end = self._node("([", [fork.joined], "])")
            self.edges += [f"  {last} --> {end}" for last in ends]
        return begin, end

    def _box(self, box: Box) -> tuple[str, str]:
        state = f"{mark_of(box.state)} {box.state}" if box.state else ""
        lines = [line for line in (box.title, box.detail, state) if line]
        name = self._node("(", lines, ")", "more" if box.more else self._style(box.state))
        for branch in box.branches:
            first, _ = self.row(branch.row)
            self.edges.append(f'  {name} -. "{escaped(branch.caption)}" .-> {first}')
        return name, name

    def _node(self, opening: str, lines: Sequence[str], closing: str, style: str = "") -> str:
        self._count += 1
        name = f"n{self._count}"
        label = "<br/>".join(map(escaped, lines))
        self.nodes.append(f'  {name}{opening}"{label}"{closing}{":::" if style else ""}{style}')
        if style == "more":
            self._states["more"] = "fill:#ffffff,stroke:#768390,color:#57606a,stroke-dasharray:4 3"
        return name

    def _style(self, state: str) -> str:
        if not state:
            return ""
        colours = colours_of(state)
        self._states[colours.name] = f"fill:{colours.fill},stroke:{colours.line},color:{colours.text}"
        return colours.name

    def styles(self) -> list[str]:
        """The lines that say what the classes look like that are in use."""
        return [f"  classDef {name} {style}" for name, style in self._states.items()]


def escaped(text: str) -> str:
    """`text` in which nothing means anything to Mermaid, nor to Markdown or HTML within it."""
    found = []
    numbered = re.match(r"\d+[.)]", text) is not None  # would begin a list
    for at, one in enumerate(text):
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if one.isalnum():
            plain = at > 0 or not numbered
        elif one == "_":
            plain = before.isalnum() and after.isalnum()
        elif one in " ,./-":
            plain = bool(before and after) and before != one
        else:
            plain = one in "='()[]{}" or (ord(one) > 0x2000 and one.isprintable())
        found.append(one if plain else f"#{ord(one)};")
    return "".join(found)
