"""Retries as real Celery makes them: the same task run at once by both, attempt for attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

import minicelery
from minicelery import _state
from minicelery import exceptions as ours
from minicelery.task import retry_delay

celery = pytest.importorskip("celery", reason="real Celery is the oracle")
theirs = pytest.importorskip("celery.exceptions")

Define = Callable[[Any, Any, list[Any]], Any]


class Flaky(Exception):
    pass


class Hopeless(Flaky):
    pass


def attempts(
    app: Any, errors: Any, define: Define, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], str, str, Any]:
    """The arguments of each attempt, the final state, and the class and value it ended with."""
    seen: list[Any] = []
    task = define(app, errors, seen)
    found = task.apply(args, kwargs, task_id="an-id")
    value = found.result
    kind = type(value).__name__
    return seen, found.state, kind, str(value) if isinstance(value, Exception) else value


def by_hand(**options: Any) -> Define:
    """Fails every time and asks for a retry with `options`."""
    attributes = options.pop("attributes", {})

    def define(app: Any, errors: Any, seen: list[Any]) -> Any:
        @app.task(bind=True, shared=False, name="t", **attributes)
        def task(self: Any, x: int = 0, y: int = 0, *rest: int, z: int = 0) -> None:
            seen.append([x, y, list(rest), z, self.request.retries])
            if self.request.retries > 8:
                raise OverflowError("enough")
            raise self.retry(**options)

        return task

    return define


def inside_except(with_exc: bool) -> Define:
    def define(app: Any, errors: Any, seen: list[Any]) -> Any:
        @app.task(bind=True, shared=False, name="t", max_retries=2)
        def task(self: Any) -> None:
            seen.append(self.request.retries)
            try:
                raise KeyError("the cause")
            except KeyError as error:
                raise self.retry(exc=error if with_exc else None) from error

        return task

    return define


def automatic(error: str, **attributes: Any) -> Define:
    """Raises the named error every time, with the attributes given."""

    def define(app: Any, errors: Any, seen: list[Any]) -> Any:
        kinds = {"Flaky": Flaky, "Hopeless": Hopeless, "KeyError": KeyError, "Ignore": errors.Ignore}

        @app.task(bind=True, shared=False, name="t", autoretry_for=(Flaky, errors.Ignore), **attributes)
        def task(self: Any) -> None:
            seen.append(self.request.retries)
            raise kinds[error]("why")

        return task

    return define


def not_thrown(app: Any, errors: Any, seen: list[Any]) -> Any:
    @app.task(bind=True, shared=False, name="t")
    def task(self: Any) -> str:
        found = self.retry(throw=False, countdown=7, exc=KeyError("x"))
        seen.append([type(found).__name__, found.when, str(found)])
        return "done"

    return task


def caught_at_the_limit(app: Any, errors: Any, seen: list[Any]) -> Any:
    @app.task(bind=True, shared=False, name="t", max_retries=1)
    def task(self: Any, x: int, y: int = 5) -> str:
        try:
            self.retry()
        except self.MaxRetriesExceededError as error:
            seen.append([str(error), list(error.task_args), dict(error.task_kwargs)])
            return "gave up"
        raise AssertionError

    return task


SCENARIOS: dict[str, tuple[Define, tuple[Any, ...], dict[str, Any]]] = {
    "default limit": (by_hand(), (), {}),
    "with an exception": (by_hand(exc=KeyError("x")), (), {}),
    "limit of the attribute": (by_hand(attributes={"max_retries": 1}), (), {}),
    "limit 0": (by_hand(attributes={"max_retries": 0}), (), {}),
    "for ever": (by_hand(attributes={"max_retries": None}), (), {}),
    "None means the default": (by_hand(max_retries=None), (), {}),
    "limit of the call": (by_hand(max_retries=5), (), {}),
    "limit of the call, lower": (by_hand(max_retries=1), (), {}),
    "limit of the call, nothing at all": (by_hand(max_retries=0), (), {}),
    "limit of the call, for ever": (by_hand(max_retries=2, attributes={"max_retries": None}), (), {}),
    "new args": (by_hand(args=(7, 8)), (1, 2), {}),
    "new args over keywords": (by_hand(args=(7, 8)), (1,), {"y": 2, "z": 3}),
    "new keywords": (by_hand(kwargs={"z": 9}), (1, 2), {"z": 3}),
    "new keywords over args": (by_hand(kwargs={"x": 9}), (1, 2), {"z": 3}),
    "new keywords over args, y": (by_hand(kwargs={"y": 9, "z": 4}), (1, 2), {"z": 3}),
    "both": (by_hand(args=(7,), kwargs={"z": 8}), (1,), {"z": 3}),
    "more args": (by_hand(kwargs={"z": 8}), (1, 2, 3, 4), {}),
    "inside except, with the exception": (inside_except(True), (), {}),
    "inside except, without": (inside_except(False), (), {}),
    "automatic": (automatic("Flaky"), (), {}),
    "automatic, a subclass": (automatic("Hopeless"), (), {}),
    "automatic, excepted": (automatic("Hopeless", dont_autoretry_for=(Hopeless,)), (), {}),
    "automatic, not listed": (automatic("KeyError"), (), {}),
    "automatic, Ignore": (automatic("Ignore"), (), {}),
    "automatic, retry_kwargs": (automatic("Flaky", retry_kwargs={"max_retries": 5}), (), {}),
    "automatic, backoff": (automatic("Flaky", retry_backoff=True, max_retries=4), (), {}),
    "not thrown": (not_thrown, (), {}),
    "caught at the limit": (caught_at_the_limit, (1,), {"y": 2}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_attempts_and_their_end_are_celerys(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "shared", [])
    define, args, kwargs = SCENARIOS[scenario]
    mine = minicelery.Celery("oracle", broker="memory://", backend="memory://", set_as_current=False)
    original = celery.Celery("oracle", broker="memory://", backend="cache+memory://", set_as_current=False)
    assert attempts(mine, ours, define, args, kwargs) == attempts(original, theirs, define, args, kwargs)


@pytest.mark.parametrize("with_exc", [True, False])
def test_a_task_called_directly_raises_what_celery_raises(with_exc: bool) -> None:
    def raised(app: Any) -> tuple[str, str]:
        @app.task(bind=True, shared=False, name="direct")
        def task(self: Any) -> None:
            raise self.retry(exc=KeyError("x") if with_exc else None)

        with pytest.raises(Exception) as caught:
            task()
        return type(caught.value).__name__, str(caught.value)

    assert raised(minicelery.Celery(set_as_current=False)) == raised(celery.Celery(set_as_current=False))


def test_the_backoff_is_celerys() -> None:
    from celery.utils.time import get_exponential_backoff_interval

    for factor in (True, 0.3, 1, 2.9, 5, 100, 10_000):
        for longest in (0, 1, 7, 600, 10**6):
            for retries in (0, 1, 2, 5, 10, 40):
                expected = get_exponential_backoff_interval(int(max(1.0, factor)), retries, longest)
                assert retry_delay(retries, factor, longest, False, random.Random()) == expected


def test_the_jitter_is_celerys() -> None:
    from celery.utils.time import get_exponential_backoff_interval

    rng = random.Random(7)
    state = random.getstate()
    random.seed(7)
    try:
        for retries in range(200):
            expected = get_exponential_backoff_interval(3, retries % 8, 600, full_jitter=True)
            assert retry_delay(retries % 8, 3, 600, True, rng) == expected
    finally:
        random.setstate(state)
