"""The POSIX signals that may end a running task."""

from __future__ import annotations

import signal

ACCEPTED = tuple(
    name
    for name in "SIGTERM SIGKILL SIGINT SIGQUIT SIGHUP SIGABRT SIGUSR1 SIGUSR2".split()
    if hasattr(signal, name)
)


def stop_signal(value: str | int | None) -> str:
    """The name of the signal that `value` names or numbers; SIGTERM for None.

    Raises ValueError naming those accepted.
    """
    if value is None:
        return "SIGTERM"
    found = None
    if isinstance(value, str):
        name = value.upper()
        found = name if name.startswith("SIG") else f"SIG{name}"
    elif isinstance(value, int) and not isinstance(value, bool):
        found = next((name for name in ACCEPTED if getattr(signal, name) == value), None)
    if found not in ACCEPTED:
        raise ValueError(
            f"signal={value!r:.80} can't end a task; accepted are {', '.join(ACCEPTED)}, or their numbers"
        )
    return found
