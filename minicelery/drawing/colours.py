"""How a state looks: colours that are told apart on light and on dark pages, and a mark."""

from __future__ import annotations

from typing import NamedTuple


class Colours(NamedTuple):
    """Those of one kind of box; `name` is that of its Mermaid class."""

    name: str
    fill: str
    line: str
    text: str


PLAIN = Colours("plain", "#ffffff", "#5b6b7c", "#1b2430")
_OWN = Colours("own", "#e4f6f8", "#14808d", "#0c4a52")
_WAITING = Colours("waiting", "#f1f3f6", "#8793a1", "#3b4653")
_STATES = {
    "PENDING": ("·", _WAITING),
    "RECEIVED": ("·", _WAITING),
    "IGNORED": ("·", _WAITING),
    "STARTED": ("▶", Colours("started", "#e6f0fd", "#2f6fcf", "#163a70")),
    "SUCCESS": ("✓", Colours("success", "#e3f5e8", "#2b8a45", "#14532a")),
    "FAILURE": ("✗", Colours("failure", "#fde8e8", "#c53030", "#7a1c1c")),
    "REJECTED": ("✗", Colours("failure", "#fde8e8", "#c53030", "#7a1c1c")),
    "RETRY": ("↻", Colours("retry", "#fff3dc", "#b47600", "#6b4700")),
    "REVOKED": ("⊘", Colours("revoked", "#f3eaf9", "#7d4aa8", "#4a2b66")),
}


def mark_of(state: str) -> str:
    """A character that says the state without its colour."""
    return _STATES[state][0] if state in _STATES else "◆"


def colours_of(state: str) -> Colours:
    """Those of a state, of the task's own ones too; plain ones for no state."""
    if not state:
        return PLAIN
    return _STATES[state][1] if state in _STATES else _OWN
