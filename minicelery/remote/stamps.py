"""Whether a call bears stamps that are revoked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bears(borne: Any, revoked: Mapping[str, Sequence[Any]]) -> bool:
    """Whether what bears the stamps `borne`, a dict as in headers, bears one of `revoked`."""
    if not isinstance(borne, Mapping):
        return False
    for name, values in revoked.items():
        found = borne.get(name)
        if found is not None:
            if any(one in values for one in (found if isinstance(found, (list, tuple)) else [found])):
                return True
    return False
