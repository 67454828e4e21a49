"""The tables of docs/configuration.md are those of the code.

``python -m tests.docs.test_configuration_table`` writes them anew.
"""

from __future__ import annotations

from pathlib import Path

from minicelery.settings.table import TABLE, as_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
MARK = "<!-- settings -->\n"


def up_to_date(text: str) -> str:
    """The page with the tables as they should be, after its mark."""
    head, mark, _ = text.partition(MARK)
    assert mark, f"{PAGE.name} has no line {MARK!r}"
    return f"{head}{mark}\n{as_markdown()}"


def test_the_page_shows_the_settings_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == up_to_date(text), "run: python -m tests.docs.test_configuration_table"


def test_the_page_has_one_line_for_every_setting() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name in TABLE:
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1, name


if __name__ == "__main__":
    PAGE.write_text(up_to_date(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
