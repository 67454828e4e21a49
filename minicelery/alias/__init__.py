"""minicelery under Celery's name: `install_as_celery()`.

What of Celery's is served, and by what of ours, is data: see `table`.
"""

from __future__ import annotations

import importlib.util
import sys

from minicelery.alias.finder import Finder, stands_in
from minicelery.alias.refused import REFUSED
from minicelery.alias.table import SERVED
from minicelery.exceptions import ImproperlyConfigured

__all__ = ["install_as_celery"]

ROOTS = ("celery", "kombu", "billiard")


def install_as_celery(*, force: bool = False) -> None:
    """Have `import celery` give minicelery in this process, and `kombu` and `billiard` where they are not installed.

    Call it before anything imports celery; a second call changes nothing.  Raises
    ImproperlyConfigured where the real Celery is installed.  With `force` minicelery stands in
    for all of them even so: who imports them from now on gets minicelery, and a real one that was
    imported before, and imports parts of itself later, no longer works.
    """
    present = {name: origin for name in ROOTS if (origin := _origin(name)) is not None}
    if not force and "celery" in present:
        raise ImproperlyConfigured(
            f"install_as_celery() would hide {present['celery']}; "
            "uninstall Celery, or say install_as_celery(force=True)"
        )
    roots = set(ROOTS) if force else set(ROOTS) - set(present)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in roots and not stands_in(module):
            del sys.modules[name]
    finder = next((found for found in sys.meta_path if isinstance(found, Finder)), None)
    if finder is None:
        finder = Finder(SERVED, REFUSED)
        sys.meta_path.insert(0, finder)
    finder.roots |= roots


def _origin(name: str) -> str | None:
    """Where the real package of that name is; None where there is none."""
    module = sys.modules.get(name)
    if module is not None:
        return None if stands_in(module) else str(getattr(module, "__file__", name))
    spec = importlib.util.find_spec(name) if name not in sys.modules else None
    return None if spec is None or isinstance(spec.loader, Finder) else str(spec.origin or name)
