"""The class of tasks in a Django project: calls that wait for the transaction to be committed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.contrib.django.problems import CallInTransaction
from minicelery.modules import callers_level
from minicelery.options import check_arguments_shape, check_call
from minicelery.task import P, R, Task

if TYPE_CHECKING:
    from minicelery.result import AsyncResult

_REMEDY = "write delay_on_commit(…), or apply_async_on_commit(…)"


class DjangoTask(Task[P, R]):
    """A task that can be called when the transaction is committed; `app.Task` in a Django project."""

    abstract = True

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """`delay` once the transaction that is open is committed; at once where none is.

        There is no result: nothing has been sent yet.
        """
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        using: str | None = None,
        robust: bool = False,
        **options: Any,
    ) -> None:
        """`apply_async` once the transaction that is open on the database `using` is committed.

        Arguments and options are checked at once.  Nothing is sent if it is rolled back.  What it
        raises then, as where the broker is away, comes out of the commit; with `robust` it is logged
        by Django, and what else waits for the commit goes on.
        """
        from django.db import transaction

        given, named = () if args is None else args, {} if kwargs is None else kwargs
        check_arguments_shape(self.name, given, named)
        if not self._settled:
            self._settle()
        if self.typing:
            self.check_arguments(given, named)
        if options:
            check_call(self.name, options, self.app.conf)

        def send() -> None:
            self.apply_async(args, kwargs, **options)

        send.__qualname__ = f"{self.name}.apply_async"  # Django logs it
        transaction.on_commit(send, using=using, robust=robust)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """See `Task.apply_async`; warns within a transaction, where DEBUG is on."""
        warn_within_transaction(self.name, _REMEDY)
        return super().apply_async(args, kwargs, **options)


def warn_within_transaction(name: str, remedy: str) -> None:
    """Warn of a call that is made now, if a transaction is open and DEBUG is on."""
    from django.conf import settings

    if not (settings.configured and settings.DEBUG):
        return
    from minicelery.contrib.django.transactions import open_transaction

    if (database := open_transaction()) is not None:
        warnings.warn(
            f"minicelery.W005: {name} is called within a transaction of the database {database!r}, so a worker "
            f"may run it before the rows are there; {remedy}",
            CallInTransaction,
            stacklevel=callers_level(),
        )
