"""The part of docs/compatibility.md on Celery's modules: what of each the alias serves, and what it does not."""

from __future__ import annotations

from minicelery.alias.finder import read_row
from minicelery.alias.refused import REFUSED
from minicelery.alias.table import SERVED
from tests.alias.celerys import modules, public_names

HEAD = """\
## Celery's modules and names

What `import celery` gives after [`install_as_celery()`](alias.md), and `import kombu` and `import billiard` where these are not
installed. Every module of Celery 5.7 and each of its public names is in one of the two tables: `tests/alias/test_table.py`
walks over the installed Celery, and compares parameters; `test_helpers.py` compares what the small functions return.

| module | names, and where they are found |
| --- | --- |"""
REST = """\

The rest is an ImportError, or an AttributeError, with these words:

| of | not served | why |
| --- | --- | --- |"""


def as_markdown() -> str:
    """Both tables."""
    served = [f"| `{path}` | {_homes(path)} |" for path in SERVED]
    left = {path: [] for path in REFUSED} | _left()
    refused = [f"| `{path}` | {_listed(path, left[path])} | {why} |" for path, why in REFUSED.items()]
    return "\n".join([HEAD, *served, REST, *refused])


def _homes(path: str) -> str:
    homes: dict[str, list[str]] = {}
    for name, place in read_row(SERVED[path]).items():
        homes.setdefault(place.module, []).append(name if name == place.name else f"{name} ({place.name})")
    return "; ".join(
        f"`{home}`: {', '.join(_plain(name) for name in names)}" for home, names in homes.items()
    )


def _left() -> dict[str, list[str]]:
    """What each reason is for: Celery's public names, and whole modules."""
    found: dict[str, list[str]] = {}
    for path in modules():
        names = read_row(SERVED.get(path, ""))
        if path not in SERVED and path not in REFUSED and not _is_above(path):
            found.setdefault(_reason(path), []).append(path)
            continue
        for name in public_names(path):
            if name not in names and f"{path}.{name}" not in REFUSED:
                if (reason := _reason(f"{path}.{name}")) == path or path in SERVED:
                    found.setdefault(reason, []).append(f"{path}.{name}")
    return found


def _is_above(path: str) -> bool:
    return any(other.startswith(f"{path}.") for other in SERVED)


def _reason(path: str) -> str:
    while path not in REFUSED:
        path = path.rpartition(".")[0]
        if not path:
            return ""
    return path


def _listed(path: str, left: list[str]) -> str:
    if path not in SERVED and not _is_above(path):
        return "all"
    shown = ", ".join(_plain(name.removeprefix(f"{path}.")) for name in left)
    return shown or "what else there is"


def _plain(name: str) -> str:
    return name.replace("_", "\\_")
