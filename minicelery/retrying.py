"""The parts of a retry: its arguments, its delay, and what is raised where there can be none."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from minicelery.request import Request


def retry_arguments(
    signature: inspect.Signature,
    request: Request,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """What a retry is called with: the old arguments where new ones don't replace them by name."""
    if args is None and kwargs is None:
        return request.args, request.kwargs
    if args is not None and kwargs is not None:
        return tuple(args), kwargs
    parameters = signature.parameters
    names = [name for name, found in parameters.items() if found.kind is found.POSITIONAL_OR_KEYWORD]
    if args is not None:
        taken = set(list(parameters)[: len(args)]).intersection(names)
        return tuple(args), {name: value for name, value in request.kwargs.items() if name not in taken}
    assert kwargs is not None
    try:
        bound = signature.bind_partial(*request.args)
    except TypeError:
        return request.args, kwargs
    replaced = {name: kwargs[name] for name in bound.arguments if name in kwargs and name in names}
    bound.arguments.update(replaced)
    return bound.args, {name: value for name, value in kwargs.items() if name not in replaced}


def raise_current(error: BaseException) -> NoReturn:
    """Raise `error` with the exception being handled as its cause, or that one itself."""
    current = sys.exc_info()[1]
    if current is error or current is None:
        raise error
    raise error from current


def retry_delay(retries: int, factor: float, longest: float, jitter: bool, rng: random.Random) -> int:
    """Whole seconds before the attempt after number `retries` (0 = the first one).

    Celery's rule: ``min(longest, max(1, int(factor)) * 2**retries)``; with `jitter` a random
    number from 0 to that ("full jitter").
    """
    ceiling = int(min(longest, int(max(1.0, factor)) * 2.0 ** min(retries, 1000)))
    return rng.randrange(ceiling + 1) if jitter else max(0, ceiling)
