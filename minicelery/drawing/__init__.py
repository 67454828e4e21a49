"""Pictures of compositions and of their results: as Mermaid text, and as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicelery.canvas.signatures import Signature, signature
from minicelery.groups import ResultSet
from minicelery.result import AsyncResult

if TYPE_CHECKING:
    import os

    from minicelery.drawing.shapes import Row

FORMATS = {".mmd": "mermaid", ".mermaid": "mermaid", ".svg": "svg"}
"""What a file is written as, by how its name ends."""


class Graph:
    """A picture of one moment; notebooks show it by themselves."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def mermaid(self) -> str:
        """The text of a Mermaid flowchart."""
        from minicelery.drawing.mermaid import flowchart

        return flowchart(self._row)

    def svg(self) -> str:
        """An SVG document, which can stand in HTML as it is."""
        from minicelery.drawing.svg import picture

        return picture(self._row)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file, as the file's name says: ``.svg`` or ``.mmd``; the file's path."""
        file = Path(path)
        kind = FORMATS.get(file.suffix.lower())
        if kind is None:
            raise ValueError(
                f"graph: save({str(path)!r}): expected a name that ends with {', '.join(FORMATS)}"
            )
        file.write_text(self.svg() if kind == "svg" else self.mermaid(), encoding="utf-8")
        return file

    def __str__(self) -> str:
        return self.mermaid()

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg(), "text/plain": self.mermaid()}


def graph_of(thing: Signature[Any] | Mapping[str, Any] | AsyncResult[Any] | ResultSet) -> Graph:
    """A picture of a signature, or of a result, with the states that its store has now.

    A signature may have become a dict.  Raises TypeError for what is neither.
    """
    if isinstance(thing, (AsyncResult, ResultSet)):
        from minicelery.drawing import results

        return Graph(results.row_of(thing))
    if isinstance(thing, Mapping) and isinstance(thing.get("task"), str):
        from minicelery.drawing import compositions

        return Graph(compositions.row_of(signature(thing)))
    raise TypeError(f"graph_of() takes a signature such as add.s(2, 2), or a result, got {thing!r:.80}")
