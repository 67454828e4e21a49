"""Where the boxes of a picture stand, and how the lines between them run; in pixels.

A row goes from left to right along its axis and is broken where it is too wide; the rows of a
fork stand below each other between two bars; branches stand below the box that they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minicelery.drawing.shapes import Box, Branch, Fork, Row
from minicelery.drawing.words import columns

LETTER = 7.83
"""Width of a letter of the titles; the smaller ones' is in proportion."""
LINE = 16.0
PADDING = 10.0
WIDEST = 1300.0
"""A row wider than this is broken."""

_GAP = 40.0  # between the boxes of a row
_APART = 14.0  # between the rows of a fork
_FAN = 30.0  # between a fork's bar and its rows
_BAR = 5.0
_REACH = 9.0  # of a bar, beyond its first and last line
_HEAD = 18.0  # room for a caption
_INDENT = 30.0  # of a branch
_BETWEEN_LINES = 26.0  # of a row that is broken
_MARGIN_OF_BROKEN = 34.0  # on either side, for what leads from one line to the next


@dataclass(slots=True)
class Line:
    """A line with an arrow at its end, unless it ends at a bar; `bends` are its corners."""

    points: list[tuple[float, float]]
    dashed: bool = False
    failure: bool = False
    arrow: bool = True


@dataclass(slots=True)
class Sheet:
    """What is to be drawn, and where."""

    boxes: list[tuple[Box, float, float, float, float]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    captions: list[tuple[str, float, float, str]] = field(default_factory=list)
    width: float = 0
    height: float = 0


@dataclass(slots=True)
class Block:
    """A part with its size; lines come in at (0, `entry`) and go out at (`out`, `exit`)."""

    width: float
    height: float
    entry: float
    out: float
    exit: float

    def place(self, sheet: Sheet, x: float, y: float) -> None:
        """Put it on the sheet, its corner at x, y."""
        raise NotImplementedError


def arrange(row: Row, margin: float = 16.0) -> Sheet:
    """The sheet with all of the row on it."""
    block = _row(row)
    sheet = Sheet(width=block.width + 2 * margin, height=block.height + 2 * margin)
    block.place(sheet, margin, margin)
    return sheet


# -- boxes -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _BoxBlock(Block):
    box: Box
    size: tuple[float, float]
    branches: list[tuple[Branch, Block, float]]  # and how far below the box's top it stands

    def place(self, sheet: Sheet, x: float, y: float) -> None:
        width, height = self.size
        sheet.boxes.append((self.box, x, y, width, height))
        for branch, block, down in self.branches:
            stem, inner, top = x + (8 if branch.failure else 16), x + _INDENT, y + down
            points = [(stem, y + height), (stem, top + block.entry), (inner, top + block.entry)]
            sheet.lines.append(Line(points, dashed=True, failure=branch.failure))
            sheet.captions.append((branch.caption, x + 22, top - 5, "start"))
            block.place(sheet, inner, top)


def lines_of(box: Box) -> int:
    """How many lines of text a box has."""
    return 1 + bool(box.detail) + bool(box.state)


def _box(box: Box) -> Block:
    small = max(columns(box.detail), columns(box.state) + 2) * LETTER * 12 / 13
    width = max(columns(box.title) * LETTER, small, 60.0) + 2 * PADDING
    height = lines_of(box) * LINE + 2 * PADDING - 4
    extent, bottom, branches = width, height, []
    for branch in box.branches:
        block = _row(branch.row)
        down = bottom + _HEAD + 4
        branches.append((branch, block, down))
        caption = _INDENT + len(branch.caption) * LETTER
        extent, bottom = max(extent, _INDENT + block.width, caption), down + block.height
    return _BoxBlock(extent, bottom, height / 2, width, height / 2, box, (width, height), branches)


# -- forks -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _ForkBlock(Block):
    fork: Fork
    rows: list[tuple[Block, float]]  # and how far down it stands

    def place(self, sheet: Sheet, x: float, y: float) -> None:
        inner = x + _BAR + _FAN
        end = x + self.width - _BAR
        (first, top), (last, bottom) = self.rows[0], self.rows[-1]
        sheet.captions.append((self.fork.caption, x, y + 11, "start"))
        sheet.bars.append((x, y + top + first.entry - _REACH, y + bottom + last.entry + _REACH))
        for block, down in self.rows:
            at = y + down
            sheet.lines.append(Line([(x + _BAR, at + block.entry), (inner, at + block.entry)]))
            block.place(sheet, inner, at)
            if self.fork.joined:
                sheet.lines.append(
                    Line([(inner + block.out, at + block.exit), (end, at + block.exit)], arrow=False)
                )
        if self.fork.joined:
            sheet.captions.append((self.fork.joined, end + _BAR, y + 11, "end"))
            sheet.bars.append((end, y + top + first.exit - _REACH, y + bottom + last.exit + _REACH))


def _fork(fork: Fork) -> Block:
    rows: list[tuple[Block, float]] = []
    down, widest = _HEAD, 0.0
    for row in fork.rows:
        block = _row(row)
        rows.append((block, down))
        down += block.height + _APART
        widest = max(widest, block.width)
    (first, top), (last, bottom) = rows[0], rows[-1]
    width = _BAR + _FAN + widest + (_FAN + _BAR if fork.joined else 0)
    width = max(width, (len(fork.caption) + len(fork.joined) + 2) * LETTER)
    entry = (top + first.entry + bottom + last.entry) / 2
    exit = (top + first.exit + bottom + last.exit) / 2
    # Nothing follows what is not joined, but a fork may be the last part of a member that is.
    return _ForkBlock(width, down - _APART, entry, width, exit, fork, rows)


# -- rows --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _RowBlock(Block):
    lines: list[tuple[float, list[tuple[Block, float, float]]]]
    """The bottom of each, and its blocks with where they stand."""

    def place(self, sheet: Sheet, x: float, y: float) -> None:
        before: tuple[float, float] | None = None
        above = 0.0
        for bottom, line in self.lines:
            for at, (block, right, down) in enumerate(line):
                left, axis = x + right, y + down + block.entry
                if before is not None and at:
                    sheet.lines.append(Line(_across(*before, left, axis)))
                elif before is not None:
                    between = y + above + _BETWEEN_LINES / 2
                    out, back = x + self.width - 8, x + 8
                    way = [(out, before[1]), (out, between), (back, between), (back, axis), (left, axis)]
                    sheet.lines.append(Line([before, *way]))
                block.place(sheet, left, y + down)
                before = (left + block.out, y + down + block.exit)
            above = bottom


def _row(row: Row) -> Block:
    blocks = [_fork(part) if isinstance(part, Fork) else _box(part) for part in row]
    lines = _broken(blocks)
    if len(lines) == 1 and len(blocks) == 1:
        return blocks[0]
    placed: list[tuple[float, list[tuple[Block, float, float]]]] = []
    width = top = 0.0
    for line in lines:
        right = _MARGIN_OF_BROKEN if placed else 0.0
        axis = max(block.entry for block in line)
        parts: list[tuple[Block, float, float]] = []
        for block in line:
            parts.append((block, right, top + axis - block.entry))
            right += block.width + _GAP
        width = max(width, right - _GAP + (_MARGIN_OF_BROKEN if len(lines) > 1 else 0))
        bottom = top + axis + max(block.height - block.entry for block in line)
        placed.append((bottom, parts))
        top = bottom + _BETWEEN_LINES
    first, _, entry = placed[0][1][0]
    last, x, y = placed[-1][1][-1]
    return _RowBlock(width, placed[-1][0], entry + first.entry, x + last.out, y + last.exit, placed)


def _broken(blocks: list[Block]) -> list[list[Block]]:
    """The blocks in lines no wider than `WIDEST`, where that can be."""
    lines: list[list[Block]] = [[]]
    width = 0.0
    for block in blocks:
        if lines[-1] and width + block.width > WIDEST:
            lines.append([])
            width = 0.0
        lines[-1].append(block)
        width += block.width + _GAP
    return lines


def _across(x: float, y: float, to_x: float, to_y: float) -> list[tuple[float, float]]:
    if abs(y - to_y) < 0.5:
        return [(x, y), (to_x, to_y)]
    turn = to_x - _GAP / 2
    return [(x, y), (turn, y), (turn, to_y), (to_x, to_y)]
