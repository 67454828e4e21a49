"""`minicelery doctor`: looks for what is wrong, and says what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

MARKS = {"ok": ("✓", "green"), "note": ("·", "blue"), "warning": ("!", "yellow"), "error": ("✗", "red")}
_PLAIN = {"ok": "ok", "note": "note", "warning": "warning", "error": "error"}


@click.command(short_help="Look for what is wrong, and say what to do about it.")
@common_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def doctor(session: Session, /, *, as_json: bool) -> int:
    """Check the settings, the broker, the result store, clocks, queues and workers.

    Exit code 1 if anything is wrong (✗); what is only doubtful (!) does not count.
    """
    from minicelery.cli.checks import examine

    app = session.app()
    found = []
    for finding in examine(app):
        found.append(finding)
        if not as_json:
            _print(finding.level, finding.subject, finding.text, finding.hint)
    counts = Counter(finding.level for finding in found)
    if as_json:
        ui.say_json({"findings": [asdict(one) for one in found], "counts": dict(counts)})
    else:
        ui.say()
        ui.say(f"{_counted(counts['error'], 'error')}, {_counted(counts['warning'], 'warning')}")
    return 1 if counts["error"] else 0


def _print(level: str, subject: str, text: str, hint: str) -> None:
    mark, colour = MARKS[level]
    if not ui.can_print(mark):
        mark = _PLAIN[level]
    ui.say(f"{click.style(mark, fg=colour, bold=True)} {subject.ljust(10)} {ui.harmless(text)}")
    if hint:
        ui.say(
            f"{' ' * (len(mark) + 12)}{click.style('→' if ui.can_print('→') else '->', fg='cyan')} {ui.harmless(hint)}"
        )


def _counted(number: int, what: str) -> str:
    return ui.counted(number, what) if number else f"no {what}s"
