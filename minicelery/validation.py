"""`pydantic=True`: arguments that are models are validated, and models travel as plain data."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from minicelery.app import Celery


class Validation:
    """What pydantic does for one function, by the annotations of its parameters.

    A parameter that is annotated with a model, or with a model or None, gets a model.
    Annotations are read at the first call, so that they may name what is defined later.
    """

    def __init__(
        self,
        app: Celery,
        function: Callable[..., Any],
        name: str,
        *,
        bound: bool = False,
        strict: bool = False,
        context: Mapping[str, Any] | None = None,
        dump_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for option, value in (("pydantic_context", context), ("pydantic_dump_kwargs", dump_kwargs)):
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{option}={value!r:.80} of {name}: expected a mapping")
        try:
            import pydantic
        except ImportError as error:
            raise ImproperlyConfigured(
                f"pydantic=True of {name} needs pydantic: pip install 'minicelery[pydantic]'"
            ) from error
        self._model = pydantic.BaseModel
        self._function = function
        self._signature = inspect.signature(function)
        self._bound = bound
        self._strict = strict
        self._context = {**(context or {}), "celery_app": app, "celery_task_name": name}
        self._dump_kwargs = {"mode": "json", **(dump_kwargs or {})}

    def function(self) -> Callable[..., Any]:
        """The function, with its arguments validated and its result dumped."""
        function = self._function
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: Any, **kwargs: Any) -> Any:
                bound = self._validated(args, kwargs)
                return self._dumped_result(await function(*bound.args, **bound.kwargs))

            return wait

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = self._validated(args, kwargs)
            return self._dumped_result(function(*bound.args, **bound.kwargs))

        return call

    # -- in the worker -----------------------------------------------------------------------

    def _validated(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        bound = self._signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            model = self._model_of(name, value)
            if model is not None:
                bound.arguments[name] = self._validate(model, value)
        return bound

    def _validate(self, model: Any, value: Any) -> Any:
        return model.model_validate(value, strict=self._strict, context=dict(self._context))

    def _model_of(self, parameter: str, value: Any) -> Any:
        """The model that `value` has to be, as an argument; None: whatever it likes."""
        hint = self._hints[parameter]
        if value is not None:
            hint = _without_none(hint)
        return hint if _is_class(hint) and issubclass(hint, self._model) else None

    def _dumped_result(self, value: Any) -> Any:
        if not isinstance(value, self._model):
            return value
        hint = _without_none(self._hints["return"])
        if _is_class(hint) and isinstance(value, hint):
            return value.model_dump(**self._dump_kwargs)
        return value

    @functools.cached_property
    def _hints(self) -> dict[str, Any]:
        """The annotations as objects.  One that can't be found is left as its text: no model."""
        signature = self._signature
        found = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        found["return"] = signature.return_annotation
        try:
            return {**found, **typing.get_type_hints(self._function)}
        except (NameError, AttributeError, TypeError):
            names = getattr(inspect.unwrap(self._function), "__globals__", {})
            return {name: _evaluated(hint, names) for name, hint in found.items()}

    # -- in the caller -----------------------------------------------------------------------

    def dump(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """A call's arguments with models as plain data, where the worker makes equal models of that."""
        if not any(isinstance(value, self._model) for value in (*args, *kwargs.values())):
            return args, kwargs
        parameters = list(self._signature.parameters.values())[self._bound :]
        places = [
            one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        keywords = {
            one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        dumped = [self._dumped(*pair) for pair in zip(places, args, strict=False)]
        return (
            type(args)((*dumped, *args[len(dumped) :])) if isinstance(args, (list, tuple)) else args,
            {key: self._dumped(key, value) if key in keywords else value for key, value in kwargs.items()},
        )

    def _dumped(self, parameter: str, value: Any) -> Any:
        if not isinstance(value, self._model) or hasattr(type(value), "__json__"):
            return value
        model = self._model_of(parameter, value)
        if model is None:
            return value
        try:
            dumped = value.model_dump(**self._dump_kwargs)
            # Equal means of the same class, too: a subclass is left for the serializer to refuse.
            return dumped if self._validate(model, dumped) == value else value
        except Exception:  # of the model's own code, which may need a worker
            return value


def _without_none(hint: Any) -> Any:
    """`Model` for `Model | None`, else the hint itself."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    parts = typing.get_args(hint)
    if len(parts) == 2 and type(None) in parts:
        return parts[parts[0] is type(None)]
    return hint


def _is_class(hint: Any) -> bool:
    # In Python 3.10 list[str] claims to be a class.
    return isinstance(hint, type) and not isinstance(hint, types.GenericAlias)


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": hint}), names)["it"]
    except Exception:  # whatever an annotation may raise
        return hint
