"""Which app a command is for: what -A may say, and where to look without it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from minicelery.cli.ui import CONFIGURATION, USAGE, CommandError, did_you_mean
from minicelery.exceptions import ImproperlyConfigured
from minicelery.modules import without_celery

if TYPE_CHECKING:
    from minicelery.app import Celery

CANDIDATES = ("celery.py", "celery_app.py", "tasks.py", "app.py", "main.py")
"""Files that are searched for an app when nothing names one."""

_PREFERRED = ("app", "celery")  # attributes, in Celery's order
_FACTORIES = ("create_app", "make_app", "create_celery", "make_celery", "celery_init_app", "get_app")
_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s@]*@")
_WHOLE = "MINICELERY_TRACEBACK=1 shows the whole traceback"
_PACKAGE = str(Path(__file__).resolve().parents[1])
_ATTRIBUTE = re.compile(r"(?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?P<call>\(\))?")


class AppNotFound(CommandError):
    """What -A names is not there, or holds no app."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, exit_code=USAGE)


@dataclass(frozen=True, slots=True)
class Guess:
    """An app that nobody named, and how it was found."""

    app: Celery
    name: str
    where: str


def find_app(spec: str, directory: Path) -> Celery:
    """The app that `spec` means, imported with `directory` first on the path.

    `spec` is ``module``, ``module:attribute``, ``module.attribute``, ``module:factory()``,
    ``file.py`` or ``file.py:attribute``; the () of a factory may be left out.  Raises AppNotFound, or CommandError where the
    module's own code fails.
    """
    location, attribute = _split(spec)
    _prepend(directory)
    if location.endswith(".py"):
        module = _import_file(directory / location)
        return _pick(module, attribute, spec)
    name = os.path.normpath(location).replace(os.sep, ".") if os.sep in location else location
    module_or_none = _import(name, directory)
    if module_or_none is not None:
        return _pick(module_or_none, attribute, spec)
    parent, _, last = name.rpartition(".")
    if attribute is None and parent and (outer := _import(parent, directory)) is not None:
        return _pick(outer, last, spec)
    raise AppNotFound(f"no module named {name!r} in {directory}", _nearest_module(name, directory))


def guess_app(directory: Path, environ: Mapping[str, str]) -> Guess | None:
    """The app that the environment, pyproject.toml or a file of a usual name gives."""
    for variable in ("MINICELERY_APP", "CELERY_APP"):
        if spec := environ.get(variable):
            return Guess(find_app(spec, directory), spec, f"in ${variable}")
    if spec := configured_app(directory):
        return Guess(find_app(spec, directory), spec, "in pyproject.toml")
    if (guess := _django_app(directory, environ)) is not None:
        return guess
    for name in CANDIDATES:
        if _mentions_celery(directory / name):
            _prepend(directory)
            found = _search(_import_file(directory / name))
            if len(found) == 1:
                ((attribute, app),) = found.items()
                return Guess(app, f"{Path(name).stem}:{attribute}", f"in {name}")
            if found:
                raise _several(found, Path(name).stem)
    return None


def configured_app(directory: Path) -> str | None:
    """What `[tool.minicelery] app` says in the directory's pyproject.toml."""
    try:
        text = (directory / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    if sys.version_info < (3, 11):
        table = re.search(r"^\[tool\.minicelery\]\s*$(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
        entry = table and re.search(r"""^app\s*=\s*(["'])(.+?)\1""", table[1], re.MULTILINE)
        return entry[2] if entry else None
    import tomllib

    try:
        value = tomllib.loads(text).get("tool", {}).get("minicelery", {}).get("app")
    except tomllib.TOMLDecodeError as failure:
        raise CommandError(f"{directory / 'pyproject.toml'}: {failure}", exit_code=CONFIGURATION) from failure
    return value if isinstance(value, str) else None


def set_up_django(directory: Path) -> None:
    """Have Django ready, so that modules with models can be imported.  Raises ImproperlyConfigured."""
    if importlib.util.find_spec("django") is not None:
        _prepend(directory)
        importlib.import_module("minicelery.contrib.django.fixup").set_up()


def _django_app(directory: Path, environ: Mapping[str, str]) -> Guess | None:
    """The app of the project whose manage.py is here, or that DJANGO_SETTINGS_MODULE names."""
    name = environ.get("DJANGO_SETTINGS_MODULE") or _settings_of_manage(directory)
    if not name or importlib.util.find_spec("django") is None:
        return None
    os.environ["DJANGO_SETTINGS_MODULE"] = name
    set_up_django(directory)
    app = importlib.import_module("minicelery.contrib.django.project").find_app()
    return None if app is None else Guess(app, str(app.main), f"in the Django project of {name}")


def _settings_of_manage(directory: Path) -> str | None:
    try:
        text = (directory / "manage.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"""["']DJANGO_SETTINGS_MODULE["']\s*,\s*["']([\w.]+)["']""", text)
    return found and found[1]


def _split(spec: str) -> tuple[str, str | None]:
    location, colon, attribute = spec.rpartition(":")
    if not colon or not location or attribute.startswith(("\\", "/")):  # C:\project\tasks.py
        return spec, None
    if not _ATTRIBUTE.fullmatch(attribute):
        raise AppNotFound(
            f"{attribute!r} in -A {spec!r} is neither an attribute nor a factory",
            f'write -A "{location}:app" or -A "{location}:create_app()"',
        )
    return location, attribute


def _prepend(directory: Path) -> None:
    text = str(directory)
    if sys.path[:1] != [text]:
        sys.path.insert(0, text)


def _import(name: str, directory: Path) -> ModuleType | None:
    """The module, or None where there is none of that name."""
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as failure:
        if failure.name is not None and (name == failure.name or name.startswith(failure.name + ".")):
            return None
        raise _import_failed(name, failure, directory) from failure
    except (Exception, SystemExit) as failure:
        raise _import_failed(name, failure, directory) from failure


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise AppNotFound(f"no file {path}", "paths given to -A are relative to --workdir")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    if parts[-1] == "__init__":
        parts.pop()
    _prepend(root)
    name = ".".join(parts)
    known = sys.modules.get(name)
    if known is not None and _is_file(known, path):
        return known
    if known is None and all(part.isidentifier() for part in parts):
        module = _import(name, root)
        if module is not None and _is_file(module, path):
            return module
    return _load_file(name, path)


def _is_file(module: ModuleType, path: Path) -> bool:
    return bool(module.__file__) and Path(str(module.__file__)).resolve() == path


def _load_file(name: str, path: Path) -> ModuleType:
    """Import a file whose name is taken by another module, or is not an identifier."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as failure:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise _import_failed(name, failure, path.parent) from failure
    return module


def fault_of_program(failure: BaseException, directory: Path) -> CommandError | None:
    """What the project's own code has done wrong, in two lines; None where it was not that code.

    A module that `include` or the settings name may not be there, or may fail as it is imported.
    """
    if isinstance(failure, ImportError) and _is_settings(failure):
        text, _, hint = str(failure).partition("; ")
        return CommandError(text, hint=hint or None, exit_code=CONFIGURATION)
    place = _place(failure, directory, only_there=True)
    if place is None and not isinstance(failure, ImportError):
        return None
    if isinstance(failure, ModuleNotFoundError) and place is None:
        hint = f"is it named in include or imports of the app? Modules are looked for from {directory}"
        return CommandError(f"importing {failure.name!r} failed: {failure}", hint=hint)
    text = f"{type(failure).__name__}: {failure}"
    return CommandError(f"{text}\n  {place}" if place else text, hint=_WHOLE)


def _is_settings(failure: ImportError) -> bool:
    frames = traceback.extract_tb(failure.__traceback__)
    return bool(frames) and os.path.dirname(frames[-1].filename) == os.path.join(_PACKAGE, "settings")


def _import_failed(name: str, failure: BaseException, directory: Path) -> CommandError:
    if isinstance(failure, ImportError) and _is_settings(failure):
        return fault_of_program(failure, directory) or CommandError(str(failure))
    kind = type(failure).__name__
    place = _place(failure, directory)
    hint = _WHOLE
    if (missing := without_celery(failure)) is not None:
        hint = missing
    if isinstance(failure, ImportError) and "partially initialized module" in str(failure) and place:
        other = Path(place.partition(":")[0]).stem
        hint = f"{other} and {failure.name} import each other; begin with the other one: -A {other}"
    text = f"importing {name!r} failed: {kind}: {failure}"
    code = CONFIGURATION if isinstance(failure, ImproperlyConfigured) else 1
    return CommandError(f"{text}\n  {place}" if place else text, hint=hint, exit_code=code)


def _place(failure: BaseException, directory: Path, *, only_there: bool = False) -> str | None:
    """``file:line: source`` of the deepest frame in the project; of any file if there is none."""
    if isinstance(failure, SyntaxError) and failure.filename:
        return _line(failure.filename, failure.lineno, failure.text)
    frames = list(_frames(failure.__traceback__))
    own = [frame for frame in frames if frame.filename.startswith(str(directory) + os.sep)]
    own = [frame for frame in own if not _is_installed(frame.filename)] or ([] if only_there else frames)
    if not own:
        return None
    # What a setting has wrong is said without showing those beside it: a password may be among them.
    source = None if isinstance(failure, ImproperlyConfigured) else own[-1].line
    return _line(own[-1].filename, own[-1].lineno, source)


def _line(filename: str, number: int | None, source: str | None) -> str:
    shown = _PASSWORD.sub(r"\1**@", (source or "").strip())
    return f"{filename}:{number}: {shown}" if shown else f"{filename}:{number}"


def _is_installed(filename: str) -> bool:
    return f"{os.sep}site-packages{os.sep}" in filename or filename.startswith(_PACKAGE + os.sep)


def _frames(trace: TracebackType | None) -> Iterator[traceback.FrameSummary]:
    for frame in traceback.extract_tb(trace):
        if not frame.filename.startswith("<") and frame.filename not in (importlib.__file__, __file__):
            yield frame


def _pick(module: ModuleType, attribute: str | None, spec: str) -> Celery:
    if attribute is not None:
        return _named(module, attribute, spec)
    found = _search(module)
    if not found:
        raise _nothing(module, spec)
    preferred = next((name for name in _PREFERRED if name in found), None)
    if preferred is None and len(found) > 1:
        raise _several(found, spec)
    return found[preferred or next(iter(found))]


def _named(module: ModuleType, attribute: str, spec: str) -> Celery:
    match = _ATTRIBUTE.fullmatch(attribute)
    assert match is not None
    value: Any = module
    for part in match["path"].split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise AppNotFound(
                f"module {module.__name__!r} has no attribute {match['path']!r}",
                did_you_mean(part, _public(module)) or _factory_hint(module),
            ) from None
    if match["call"] or (inspect.isfunction(value) and _is_factory(match["path"], value)):
        value = _call(value, spec)
    elif isinstance(value, ModuleType):
        return _pick(value, None, spec)
    app = _as_app(value)
    if app is None:
        name = match["path"]
        hint = f'it is a function; try -A "{module.__name__}:{name}()"' if inspect.isfunction(value) else None
        here = ", ".join(_search(module))
        raise AppNotFound(
            f"{spec!r} is {_kind_of(value)}, not a Celery app",
            hint or _foreign_hint(value) or (f"of {module.__name__!r} these are: {here}" if here else None),
        )
    return app


def _kind_of(value: Any) -> str:
    from minicelery.task import Task

    return "a task" if isinstance(value, Task) else f"a {type(value).__name__}"


def _call(factory: Any, spec: str) -> Any:
    if not callable(factory):
        raise AppNotFound(f"{spec!r}: a {type(factory).__name__} can't be called", "leave out the ()")
    try:
        return factory()
    except (Exception, SystemExit) as failure:
        place = _place(failure, Path.cwd())
        raise CommandError(
            f"{spec!r} failed: {type(failure).__name__}: {failure}" + (f"\n  {place}" if place else ""),
            hint=_WHOLE,
        ) from failure


def _search(module: ModuleType) -> dict[str, Celery]:
    """The apps in a module by attribute; in a package, those of its `celery` module otherwise."""
    for name in _PREFERRED:
        app = _as_app(vars(module).get(name))
        if app is not None:
            return {name: app}
    if hasattr(module, "__path__"):
        inner = _import(f"{module.__name__}.celery", Path(module.__path__[0]))
        if inner is not None and (found := _search(inner)):
            return found
    apps: dict[str, Celery] = {}
    for name, value in list(vars(module).items()):
        app = _as_app(value)
        if app is not None and all(app is not known for known in apps.values()):
            apps[name] = app
    return apps


def _as_app(value: Any) -> Celery | None:
    """`value` if it is an app, or the app that a Flask app carries."""
    from minicelery.app import Celery

    kind = type(value)  # isinstance would take proxies such as current_app for what they stand for
    if issubclass(kind, Celery):
        return value  # type: ignore[no-any-return]  # checked by its type, not by isinstance
    if any(base.__module__.partition(".")[0] == "flask" for base in kind.__mro__):
        extensions = getattr(value, "extensions", None)
        if isinstance(extensions, dict) and "celery" in extensions:
            return _as_app(extensions["celery"])
    return None


def _several(found: Mapping[str, Celery], spec: str) -> AppNotFound:
    names = ", ".join(found)
    return AppNotFound(
        f"several Celery apps in {spec!r}: {names}", f"choose one: -A {spec}:{next(iter(found))}"
    )


def _nothing(module: ModuleType, spec: str) -> AppNotFound:
    hint = _factory_hint(module)
    if hint is None:
        hint = next(filter(None, map(_foreign_hint, vars(module).values())), None)
    if hint is None:
        hint = "looked for the attributes app and celery, then for any instance of minicelery.Celery"
    return AppNotFound(f"no Celery app in {spec!r}.", hint)


def _foreign_hint(value: Any) -> str | None:
    kinds = {f"{base.__module__}.{base.__name__}" for base in type(value).__mro__}
    if "celery.app.base.Celery" in kinds:
        return "it is an app of the package celery; write 'from minicelery import Celery'"
    if "flask.app.Flask" in kinds:
        return "give the Flask app a Celery app: Minicelery(app) or init_app(app) of minicelery.contrib.flask"
    return None


def _factory_hint(module: ModuleType) -> str | None:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and _is_factory(name, value):
            return f'found factory {name}(); try -A "{module.__name__}:{name}()"'
    return None


def _is_factory(name: str, function: Any) -> bool:
    returns = function.__annotations__.get("return")
    named = name in _FACTORIES or "Celery" in (returns if isinstance(returns, str) else repr(returns))
    if not named:
        return False
    parameters = inspect.signature(function).parameters.values()
    return all(
        parameter.default is not parameter.empty
        or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _nearest_module(name: str, directory: Path) -> str:
    top = name.partition(".")[0]
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        entries = []
    modules = [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").exists()]
    return (
        did_you_mean(top, modules)
        or "-A takes module, module:attribute, module:factory() or file.py; --workdir says where to look"
    )


def _mentions_celery(path: Path) -> bool:
    """Whether a file is worth importing: an import may do anything."""
    try:
        return b"celery" in path.read_bytes().lower()
    except OSError:
        return False
