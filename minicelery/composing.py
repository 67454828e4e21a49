"""What is made of a task before it is called: signatures, and calls put together of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from minicelery.canvas import Signature, call_of, chunks, signature, xmap, xstarmap
from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar  # stubs, known to every type checker

    from minicelery.app import Celery
    from minicelery.request import Request
    from minicelery.result import AsyncResult

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class Composing(Generic[P, R]):
    """The part of `Task` that makes signatures."""

    name: str
    app: Celery

    @property
    def request(self) -> Request:
        """The attempt that is on."""
        raise NotImplementedError

    def signature(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """This task with arguments and options, not yet sent."""
        return Signature(self, args, kwargs, **options)

    subtask = signature

    def map(self, it: Iterable[Any]) -> xmap:
        """`[task(item) for item in it]`, as one call."""
        return xmap(self.s(), it, app=self.app)

    def starmap(self, it: Iterable[Iterable[Any]]) -> xstarmap:
        """`[task(*item) for item in it]`, as one call."""
        return xstarmap(self.s(), it, app=self.app)

    def chunks(self, it: Iterable[Iterable[Any]], n: int) -> chunks:
        """Calls with the arguments in `it`, `n` of them to a message."""
        return chunks(self.s(), it, n, app=self.app)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """A signature with these arguments; a previous result may come before them."""
        return Signature(self, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """A signature that takes these arguments only, never a previous result."""
        return Signature(self, args, kwargs, immutable=True)

    def signature_from_request(
        self,
        request: Request | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        **options: Any,
    ) -> Signature[R]:
        """The call that `request` is an attempt at, as a signature: for the same id, queue and followers."""
        request = self.request if request is None else request
        given = {**call_of(request), **options}
        if queue:
            given |= {"queue": queue, "exchange": None, "routing_key": None}
        args = request.args if args is None else args
        kwargs = request.kwargs if kwargs is None else kwargs
        return self.signature(
            args, kwargs, **{key: value for key, value in given.items() if value is not None}
        )

    subtask_from_request = signature_from_request

    # -- inside an attempt -----------------------------------------------------------------

    def replace(self, sig: Mapping[str, Any]) -> Any:
        """Have `sig` run in place of this attempt, with its id and what follows it; raises Ignore.

        The result of this task will be that of `sig`; of a group, the list of its results.  In an
        eager run `sig` is run at once, and its value returned.  Raises ImproperlyConfigured where
        there is nothing in `sig`, or it is a part of a chord itself.
        """
        found = signature(sig)
        request = self.request
        if "chord" in found.options:
            raise ImproperlyConfigured(
                f"{self.name}: what replaces a task can't be a part of a chord: {found!r}"
            )
        if request.called_directly:
            raise RuntimeError(
                f"{self.name}.replace() needs an attempt to replace: call it in a task that a worker runs"
            )
        if request.stamps:
            found.stamp(stamped_headers=list(request.stamped_headers or request.stamps), **request.stamps)
        self.on_replace(found)
        if request.is_eager:
            return found.apply().get()
        self.app._canvas.replace(request, found)

    def on_replace(self, sig: Signature[Any]) -> None:
        """Called with what is about to take the place of an attempt."""

    def add_to_chord(self, sig: Mapping[str, Any], lazy: bool = False) -> AsyncResult[Any]:
        """Have the body of the chord that this attempt is a part of wait for `sig` as well.

        It is sent when this attempt has ended; its result comes after those that the body has
        already.  Raises ValueError where this is no part of a chord, or its body does not wait any more.
        """
        if lazy:
            raise TypeError(
                f"{self.name}.add_to_chord: lazy=True is not served: the call is sent with the outcome"
            )
        found: AsyncResult[Any] = self.app._canvas.add_to_chord(self.request, signature(sig))
        return found
