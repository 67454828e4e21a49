"""What a subclass of `Task` may override: handlers of an attempt's end, and hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from minicelery.app import Celery


class Hooks:
    """The handlers and hooks of `Task`, which do nothing."""

    name: str
    app: Celery

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before each attempt."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called after an attempt that returned."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called after an attempt that asked for another."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has failed for good."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called after each attempt, however it ended."""

    def shadow_name(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
        """The name under which logs and monitors show a call; None: the task's own."""

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Called once the task belongs to `app`, before its first use."""

    @classmethod
    def annotate(cls) -> None:
        """Take the attributes that `task_annotations` has for this task."""
        cls.app._annotate(cls)  # type: ignore[arg-type]  # it is a Task

    @classmethod
    def add_around(cls, attr: str, around: Callable[[Any], Any]) -> None:
        """Replace a method by what `around(method)` returns."""
        original = getattr(cls, attr)
        original = getattr(original, "__wrapped__", None) or original
        wrapped = around(original)
        wrapped.__wrapped__ = original
        setattr(cls, attr, wrapped)

    def start_strategy(self, app: Any, consumer: Any, **options: Any) -> NoReturn:
        """Celery's workers call it; minicelery's have nothing that a strategy could stand for."""
        raise NotImplementedError(
            f"{self.name}: minicelery's workers have no strategies; override before_start or __call__ instead"
        )
