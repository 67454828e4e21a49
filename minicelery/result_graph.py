"""Which task has sent which, as a graph of their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from minicelery.lineage import Result, dependencies

if TYPE_CHECKING:
    from typing import Any

    from minicelery.result import AsyncResult


class ResultGraph:
    """Which task has sent which: the results, each with those that follow from it.

    Iterates over the results; `graph[result]` is the list of those that follow.
    """

    def __init__(self, root: AsyncResult[Any], intermediate: bool = False) -> None:
        self.root = root
        self.adjacent: dict[Result, list[Result]] = {}
        for parent, node in dependencies(root, intermediate):
            self.adjacent.setdefault(node, [])
            if parent is not None:
                self.adjacent[parent].append(node)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.adjacent)

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, result: object) -> bool:
        return result in self.adjacent

    def __getitem__(self, result: Result) -> list[Result]:
        return self.adjacent[result]

    def items(self) -> Iterable[tuple[Result, list[Result]]]:
        """Each result, and those that follow from it."""
        return self.adjacent.items()

    def edges(self) -> list[Result]:
        """The results from which others follow."""
        return [node for node, following in self.adjacent.items() if following]

    def valency_of(self, result: Result) -> int:
        """How many follow from it, at any distance."""
        return sum(1 + self.valency_of(one) for one in self.adjacent[result])

    def topsort(self) -> list[Result]:
        """The results, each after all that follow from it."""
        done: dict[Result, None] = {}
        waiting = [(self.root, False)]
        while waiting:
            node, is_over = waiting.pop()
            if is_over:
                done.setdefault(node)
            elif node not in done:
                waiting.append((node, True))
                waiting += [(one, False) for one in reversed(self.adjacent[node]) if one not in done]
        return list(done)

    def to_dot(self, file: TextIO) -> None:
        """Write it in Graphviz' language."""
        file.write("digraph dependencies {\n")
        for node, following in self.adjacent.items():
            file.write(f"    {_quoted(node)}\n")
            for one in following:
                file.write(f"    {_quoted(node)} -> {_quoted(one)}\n")
        file.write("}\n")

    def mermaid(self) -> str:
        """The text of a Mermaid flowchart, with the states of this moment."""
        from minicelery.drawing import graph_of

        return graph_of(self.root).mermaid()

    def svg(self) -> str:
        """An SVG document, with the states of this moment."""
        from minicelery.drawing import graph_of

        return graph_of(self.root).svg()

    def _repr_svg_(self) -> str:
        return self.svg()

    def __repr__(self) -> str:
        return f"<ResultGraph: {self.root.id}, {len(self)} results>"


def _quoted(result: Result) -> str:
    text = str(result).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
