"""Rows as SVG: no scripts, no styles and no ids, so that it can stand in any page.

Boxes have their own background, and lines a grey that is seen on white and on black.
"""

from __future__ import annotations

from collections.abc import Sequence

from minicelery.drawing.colours import PLAIN, colours_of, mark_of
from minicelery.drawing.layout import LINE, PADDING, Line, arrange
from minicelery.drawing.shapes import Box, Row
from minicelery.drawing.words import columns

_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_GREY, _RED = "#768390", "#d0453f"
_ADVANCE = 0.602
"""Width of a letter of a monospaced font by its size."""


def picture(row: Row) -> str:
    """The SVG document; without an XML declaration, so that HTML can contain it."""
    sheet = arrange(row)
    width, height = f"{sheet.width:.0f}", f"{sheet.height:.0f}"
    body: list[str] = []
    body += map(_line, sheet.lines)
    body += (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="5" height="{bottom - top:.1f}" rx="2" fill="{_GREY}"/>'
        for x, top, bottom in sheet.bars
    )
    for box in sheet.boxes:
        body += _box(*box)
    body += (
        _text(caption, x, y, 11, _RED if caption.startswith("link_error") else _GREY, anchor=anchor)
        for caption, x, y, anchor in sheet.captions
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{_FONT}">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _box(box: Box, x: float, y: float, width: float, height: float) -> list[str]:
    colours = colours_of(box.state)
    dashes = ' stroke-dasharray="4 3"' if box.more else ""
    lines = [
        f"<g>{f'<title>{escaped(box.about)}</title>' if box.about else ''}"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        f'fill="{colours.fill}" stroke="{_GREY if box.more else colours.line}" stroke-width="1.3"{dashes}/>'
    ]
    left, at = x + PADDING, y + PADDING + 9
    title = "#57606a" if box.more else PLAIN.text
    lines.append(_text(box.title, left, at, 13, title, bold=not box.more))
    if box.detail:
        at += LINE
        lines.append(_text(box.detail, left, at, 12, "#4a5562"))
    if box.state:
        at += LINE
        lines.append(_text(f"{mark_of(box.state)} {box.state}", left, at, 11.5, colours.line, bold=True))
    lines.append("</g>")
    return lines


def _text(
    text: str, x: float, y: float, size: float, colour: str, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    length = columns(text) * size * _ADVANCE  # whatever font there is, it stays in its box
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{weight}{place} '
        f'textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escaped(text)}</text>'
    )


def _line(line: Line) -> str:
    colour = _RED if line.failure else _GREY
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    path = f'<path d="{_path(line.points)}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
    return path + (_arrow(line.points, colour) if line.arrow else "")


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Straight lines with rounded corners."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        into, out = _towards(corner, before), _towards(corner, after)
        parts.append(
            f"L{into[0]:.1f} {into[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {out[0]:.1f} {out[1]:.1f}"
        )
    parts.append(f"L{points[-1][0]:.1f} {points[-1][1]:.1f}")
    return "".join(parts)


def _towards(
    corner: tuple[float, float], other: tuple[float, float], radius: float = 6.0
) -> tuple[float, float]:
    """The point so far from the corner on the way to the other end of its line."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)  # lines run along one axis
    part = min(radius, length / 2) / length if length else 0.0
    return corner[0] + dx * part, corner[1] + dy * part


def _arrow(points: Sequence[tuple[float, float]], colour: str) -> str:
    (from_x, from_y), (x, y) = points[-2], points[-1]
    if abs(from_x - x) < 0.5:
        side = -7 if y > from_y else 7
        corners = f"M{x:.1f} {y:.1f}l-4 {side}h8z"
    else:
        corners = f"M{x:.1f} {y:.1f}l-7 -4v8z"
    return f'<path d="{corners}" fill="{colour}"/>'


def escaped(text: str) -> str:
    """`text` for XML: of letters and attributes."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return "".join(one if one.isprintable() else "\ufffd" for one in safe)
