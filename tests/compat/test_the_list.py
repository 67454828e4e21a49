"""The list of rows is whole: each has its test, each test its row, and the page says the same.

``python -m tests.compat.test_the_list`` writes docs/compatibility.md anew.
"""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.alias import page
from tests.compat.rows import ROWS, Row
from tests.properties.shapes import ELSEWHERE, SHAPES, shown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
HERE = Path(__file__).parent
HEAD = """\
# Compatibility with Celery

What Celery 5.7 has for tasks, calls, queues, signals, workers, their control and events, and what becomes of it here. Each
line is proven by the test named in it, in `tests/compat`; the page is written from the same list as the
tests are checked with. Settings are in [configuration](configuration.md), and what is different on purpose
in [differences](differences.md).

- **served**: works as in Celery.
- **served better**: works, and the note says what is different.
- **refused**: an error in words, at the call or at the start.
- **later**: not in this version; the note says what happens when it is used.
"""
COMPOSITIONS = """\
## Compositions that Celery takes otherwise

Of the compositions in `tests/properties/shapes.py` a real worker of Celery 5.7 makes the same, by
`tests/properties/test_against_celery.py`, but for these:

| composition | what is not right in Celery |
| --- | --- |"""


def proofs() -> Iterator[str]:
    """Every test of this folder, with its case where it has several."""
    for file in sorted(HERE.glob("test_*.py")):
        if file.stem == Path(__file__).stem:
            continue
        module = importlib.import_module(f"tests.compat.{file.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_") and callable(function):
                cases = getattr(function, "cases", None)
                yield from [name] if cases is None else (f"{name}[{case}]" for case in cases)


def as_markdown() -> str:
    """The page."""
    count = Counter(row.verdict for row in ROWS)
    parts = [HEAD, ", ".join(f"{number} {verdict}" for verdict, number in count.most_common()) + ".\n"]
    for title, rows in itertools.groupby(ROWS, key=lambda row: row.section):
        parts.append(f"## {title}\n\n| item | | note | test |\n| --- | --- | --- | --- |")
        parts.append("\n".join(_line(row) for row in rows) + "\n")
    parts.append(page.as_markdown() + "\n")
    parts.append(COMPOSITIONS)
    for number, why in ELSEWHERE.items():
        composition = shown(SHAPES[number]).replace("|", "\\|")
        parts.append(f"| `{composition}` | {why} |")
    return "\n".join(parts) + "\n"


def _line(row: Row) -> str:
    test, _, _ = row.proof.partition("[")
    name, why = (text.replace("|", "\\|") for text in (row.name, row.why))
    shown = f"`{name}`" if " " not in name or name.startswith("-") else name
    return f"| {shown} | {row.verdict} | {why} | `{test}` |"


def test_every_row_is_proven_and_every_test_has_a_row() -> None:
    found = list(proofs())
    assert not [name for name, number in Counter(found).items() if number > 1], "one name, two tests"
    wanted = {row.proof for row in ROWS}
    assert wanted - set(found) == set(), "rows whose test is missing"
    assert set(found) - wanted == set(), "tests without a row"


def test_a_row_says_why_it_is_not_plainly_served() -> None:
    assert [row for row in ROWS if row.verdict != "served" and not row.why] == []


def test_no_item_is_listed_twice() -> None:
    assert max(Counter((row.section, row.name) for row in ROWS).values()) == 1


def test_the_page_shows_the_list_as_it_is() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown(), "run: python -m tests.compat.test_the_list"


if __name__ == "__main__":
    PAGE.write_text(as_markdown(), encoding="utf-8")
