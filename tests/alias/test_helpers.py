"""The small functions that third parties import from `celery.utils`: what they return is what Celery's do."""

from __future__ import annotations

import importlib
import threading
import time
import warnings
from datetime import datetime, timedelta
from datetime import timezone as fixed
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery
from minicelery.alias import functional, logs, names, objects, snapshots, surroundings, texts, times
from minicelery.alias.finder import read_row
from minicelery.alias.table import SERVED

BERLIN = ZoneInfo("Europe/Berlin")
DAY = datetime(2020, 5, 6, 7, 8, 9, 10)
CALLS: dict[str, list[str]] = {
    "celery.utils.functional": [
        "maybe_list(1)", "maybe_list(None)", "maybe_list('ab')", "maybe_list({'a': 1})", "maybe_list((1, 2))",
        "is_list('ab')", "is_list({})", "is_list((1,))", "is_list(5)", "is_list({1})",
        "first(lambda x: x > 1, [1, 2, 3])", "first(None, [None, 0, 3])", "first(lambda x: x > 9, [1])",
        "list(chunks(iter(range(7)), 3))", "list(chunks([], 3))",
        "list(padlist(['a', 'b'], 3))", "list(padlist(['a', 'b', 'c'], 2, 'x'))",
        "list(uniq([3, 1, 3, 2, 1]))", "dictfilter({'a': 1, 'b': None})", "dictfilter(a=1, b=None)",
        "dictfilter({'a': 1}, b=None, c=3)", "mattrgetter('real', 'imag', 'nope')(3)", "noop(1, 2, a=3)",
        "maybe(str, 3)", "maybe(str, None)", "firstmethod('lower')(['A'])", "firstmethod('nope')(['A', 'B'])",
        "firstmethod('get')([{}, {'x': 5}], 'x')", "fun_accepts_kwargs(lambda **k: 1)",
        "fun_accepts_kwargs(lambda a: 1)", "lazy(str, 3)()", "mlazy(str, 3)()", "str(lazy(str, 3))",
        "lazy(str, 3) == '3'", "maybe_evaluate(lazy(lambda: 3))", "maybe_evaluate(5)",
        "list(regen(iter([1, 2, 3])))", "[list(it) for it in [regen(iter('ab'))] for _ in (1, 2)]",
        "regen([1, 2])", "regen(iter([1, 2, 3]))[1]", "bool(regen(iter([])))", "len(regen(iter('abc')))",
        "regen(x for x in 'abc')[-1]", "memoize(maxsize=2)(len)('abc')", "list(LRUCache(limit=2))",
    ],
    "celery.utils.time": [
        *(f"humanize_seconds({seconds}, 'in')" for seconds in (0, 0.004, 0.5, 1, 59.999, 60, 61, 3601, 7200, 90000)),
        "humanize_seconds(200, 'in', ' ')", "humanize_seconds(0, now='at once')", "humanize_seconds(0.5, microseconds=True)",
        "maybe_timedelta(3)", "maybe_timedelta(timedelta(3))", "maybe_timedelta(None)", "maybe_timedelta(0.5)",
        *(f"delta_resolution(DAY, timedelta({unit}=2))" for unit in ("days", "hours", "minutes", "seconds")),
        "remaining(DAY, timedelta(3), DAY + timedelta(1))", "remaining(DAY, timedelta(3), DAY + timedelta(1), True)",
        "remaining(DAY.replace(tzinfo=BERLIN), timedelta(3), DAY.replace(tzinfo=fixed.utc))",
        "remaining(DAY, ffwd(hour=3, minute=2), DAY)",
        "rate('10/s')", "rate('10/m')", "rate('7/h')", "rate(5)", "rate(None)", "rate('3')", "rate('0.5/s')",
        "weekday('Mon')", "weekday('sunday')", "weekday('x')", "is_naive(DAY)", "is_naive(DAY.replace(tzinfo=BERLIN))",
        "maybe_iso8601('2020-01-01T01:02:03')", "maybe_iso8601('2020-01-01T01:02:03Z') - DAY.replace(tzinfo=fixed.utc)",
        "maybe_iso8601('2020-01-01T01:02:03.123456+02:00') - DAY.replace(tzinfo=fixed.utc)", "maybe_iso8601('2020-01-01')",
        "maybe_iso8601('junk')", "maybe_iso8601(DAY)", "maybe_iso8601(None)",
        "timezone.utc", "timezone.get_timezone('Europe/Berlin')", "timezone.get_timezone(5)", "timezone.tz_or_local('UTC')",
        "timezone.to_local(DAY, BERLIN)", "timezone.to_local(DAY.replace(tzinfo=BERLIN), fixed.utc)",
        "timezone.to_system(DAY.replace(tzinfo=fixed.utc)).timestamp()", "timezone.to_local_fallback(DAY).timestamp()",
        "make_aware(DAY, BERLIN)", "make_aware(DAY, BERLIN).utcoffset()", "maybe_make_aware(DAY)",
        "maybe_make_aware(DAY.replace(tzinfo=fixed.utc), 'Europe/Berlin')", "maybe_make_aware(DAY, BERLIN)",
        "maybe_make_aware(DAY, BERLIN, naive_as_utc=False)", "localize(DAY.replace(tzinfo=fixed.utc), BERLIN)", "to_utc(DAY)",
        "datetime(2020, 1, 31, 5) + ffwd(month=2, day=31)", "DAY + ffwd(day=5, hour=3, weeks=1)",
        *(f"DAY + ffwd(weekday={day}, hour=0)" for day in range(7)), "ffwd(hour=3)", "ffwd(weekday=3)",
        "adjust_timestamp(1000, 2)", "adjust_timestamp(1000, -2, lambda: 0)", "utcoffset()",
        *(f"get_exponential_backoff_interval(2, {retries}, 100)" for retries in (-1, 0, 3, 10)),
        "subtract_datetimes(DAY.replace(tzinfo=BERLIN), DAY)", "add_seconds_to_datetime(DAY, 5)",
        "add_seconds_to_datetime(datetime(2020, 3, 29, 1, 59, 59, tzinfo=BERLIN), 5)",
        "LocalTimezone().utcoffset(DAY)", "LocalTimezone().tzname(DAY) is not None",
    ],
    "celery.utils.iso8601": ["parse_iso8601('2020-01-01T01:02:03')", "parse_iso8601('x')"],
    "celery.utils.text": [
        "dedent_initial('    a')", "dedent_initial('  a')", "dedent('    a\\n     b\\n    c')",
        "fill_paragraphs('aa bb cc\\n\\ndd ee', 5)", "join(['a', '', 'b'])", "join(['a', 'b'], ', ')",
        "ensure_sep('-', 'a')", "ensure_newlines('a')", "ensure_newlines('a\\n')", "ensure_newlines('a\\n\\n\\n')",
        "abbr('abcdefgh', 5)", "abbr('abcdefgh', 50)", "abbr('abcdefgh', 5, None)", "abbr(None, 5)",
        "abbrtask('a.b', 8)", "abbrtask('aaaa.bbbbb.cccc.dd', 9)",
        "indent('a\\nb', 2)", "truncate('abcdefgh', 5)", "truncate('abcdefgh', 5, '')", "truncate('ab', 5)",
        "truncate('one two three', 9)", "pluralize(1, 'task')", "pluralize(2, 'task')", "pluralize(0, 'task', 'z')",
        "simple_format('a %n b %%', {'n': 'x'})", "simple_format('%q', {'n': 'x'})", "simple_format(None, {})",
        "simple_format('a%I', {'I': lambda: '3'})", "str_to_list('a,b')", "str_to_list(['a'])",
        "pretty([1, 2])", "'b' in pretty({'b': 1})",
    ],
    "celery.utils.nodenames": [
        "nodename('a', 'b')", "nodesplit('a@b')", "nodesplit('b')", "anon_nodename('h')", "default_nodename('x')",
        "default_nodename('x@y')", "default_nodename(None)", "node_format('%n/%h/%d-%I-%p', 'w1@a.b.c')",
        "node_format('%%', 'w1@a.b.c')", "host_format('%n.%h.%d', 'a.b.c')", "host_format('%h')", "host_format('%q')",
        "worker_direct('w@h').name", "worker_direct('w@h').exchange.name",
    ],
    "celery.utils.imports": [
        "qualname(dict)", "qualname(5)", "gen_task_name(None, 'f', 'm')", "symbol_by_name('os.path:join')",
        "symbol_by_name('os.path.join')", "symbol_by_name(5)", "symbol_by_name('x', {'x': 'os.path:join'})",
        "symbol_by_name('nope.a', default=3)", "symbol_by_name('nope.a')", "symbol_by_name('os.path:nope')",
        "instantiate('collections:OrderedDict', a=1)", "find_module('os.path')", "find_module('os.nope')",
        "find_module('nope.nope')", "import_from_cwd('json')", "module_file(import_from_cwd('json'))",
    ],
    "celery.utils.saferepr": [
        "saferepr([1, {'a': (1, 2)}, b'x', {1}, None, 0.5, True])", "saferepr({'b': 1, 'a': 2})", "saferepr(())",
        "saferepr('text')", "saferepr([])",
    ],
    "celery.utils.objects": [
        "Bunch(a=1).a", "mro_lookup(bool, 'bit_length')", "mro_lookup(bool, 'bit_length', stop={int})",
        "mro_lookup(bool, 'nope')", "type('A', (dict,), {'x': getitem_property('a.b')})(a={'b': 1}).x",
        "type('A', (dict,), {'x': getitem_property('a')})().x",
    ],
    "celery.utils.collections": [
        "AttributeDict(a=1).a", "AttributeDict(a=1).b", "lpmerge({'a': 1, 'b': 2}, {'a': None, 'b': 3, 'c': 4})",
        "force_mapping({'a': 1})", "force_mapping(AttributeDict(a=1))['a']", "ChainMap({'a': 1}, {'a': 2, 'b': 2})['b']",
        "DictAttribute(DAY)['year']", "DictAttribute(DAY)['nope']", "DictAttribute(DAY).get('nope', 5)",
        "sorted(LimitedSet(maxlen=2, data='abc'))", "len(LimitedSet(data='abca'))", "'a' in LimitedSet(data='a')",
        "LimitedSet(minlen=3, maxlen=2)",
    ],
    "celery.utils.serialization": [f"strtobool({term!r})" for term in ("yes", "off", "True", "0", 1, "x", None)],
    "celery.utils.log": ["mlevel('info')", "mlevel(10)", "mlevel(None)", "mlevel('WARN')", "LOG_LEVELS", "mlevel('x')"],
    "celery.utils.term": [
        "str(colored().red('x'))", "str(colored(enabled=False).red('x'))", "str(colored().bold('x') + colored().green('y'))",
        "colored().red('a', colored().blue('b')).no_color()", "str(colored().ired('x'))", "str(colored().underline('x'))",
    ],
    "celery.local": ["try_import('json')", "try_import('nope', 5)", "maybe_evaluate(5)", "maybe_evaluate(Proxy(lambda: 5))"],
    "celery.events.event": ["group_from('task-sent')", "event_exchange.name", "event_exchange.type"],
    "kombu.utils.json": [
        "dumps({'a': DAY})", "loads(dumps({'a': DAY, 'b': b'x'}))", "dumps([1], indent=1)", "loads('[1]', object_hook=None)",
        "loads(b'{\"a\": 1}')",
    ],
}  # fmt: skip


def outcome(module: dict[str, Any], call: str) -> Any:
    """What it returns, or the type of what it raises."""
    known = {"datetime": datetime, "timedelta": timedelta, "fixed": fixed, "BERLIN": BERLIN, "DAY": DAY}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = eval(call, {**known, **module})
    except Exception as error:
        kinds = (LookupError, AttributeError, ImportError, TypeError, ValueError)
        return next((kind for kind in kinds if isinstance(error, kind)), type(error).__name__)
    shown = repr(value)
    return shown if "ffwd" in shown else value


def served(path: str) -> dict[str, Any]:
    row = read_row(SERVED[path])
    return {name: getattr(importlib.import_module(place.module), place.name) for name, place in row.items()}


@pytest.mark.parametrize(("path", "call"), [(path, call) for path, calls in CALLS.items() for call in calls])
def test_a_small_function_returns_what_celerys_does(
    path: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours = served(path)
    theirs = {name: getattr(importlib.import_module(path), name) for name in ours}
    assert outcome(ours, call) == outcome(theirs, call)


def test_each_module_of_small_functions_is_compared() -> None:
    wanted = {path for path in SERVED if path.startswith("celery.utils.") and ".dispatch" not in path}
    assert wanted - set(CALLS) == {"celery.utils.abstract", "celery.utils.sysinfo", "celery.utils.threads"}


# -- what has no answer to compare -----------------------------------------------------------


def test_a_regenerated_iterator_is_read_as_far_as_it_is_looked_at() -> None:
    read = []

    def numbers() -> Any:
        for number in range(5):
            read.append(number)
            yield number

    again = functional.regen(numbers())
    assert again[1] == 1 and read == [0, 1]
    assert bool(again) and 2 in again and read == [0, 1, 2]
    assert [*again, *again] == [*range(5)] * 2 and read == [*range(5)]


def test_a_cache_forgets_what_was_used_longest_ago() -> None:
    cache = functional.LRUCache(limit=2)
    cache["a"] = cache["b"] = 1
    assert cache["a"] == 1
    cache["c"] = 3
    assert set(cache) == {"a", "c"} and cache.incr("c") == 4


def test_a_memoized_function_is_called_once_for_the_same_arguments() -> None:
    called = []
    double: Any = functional.memoize()(lambda x, *, by=2: called.append(x) or x * by)
    assert [double(2), double(2), double(2, by=3)] == [4, 4, 6]
    assert (called, double.hits, double.misses) == ([2, 2], 1, 2)
    double.clear()
    assert double(2) == 4 and len(called) == 3


def test_a_cached_property_is_found_once_and_can_be_set_and_deleted() -> None:
    class Shop:
        found = 0

        @functional.cached_property
        def name(self) -> int:
            self.found += 1
            return self.found

        @name.setter
        def name(self, value: int) -> int:
            return value * 10

    shop: Any = Shop()
    assert (shop.name, shop.name) == (1, 1)
    shop.name = 5
    assert shop.name == 50
    del shop.name
    assert shop.name == 2


def test_a_limited_set_drops_what_is_oldest_or_too_old() -> None:
    seen = objects.LimitedSet(maxlen=2, expires=100)
    for at, item in enumerate("aba", 1000):
        seen.add(item, now=at)
    seen.add("c", now=1003)
    assert list(seen) == ["a", "c"]
    seen.purge(now=1102.5)
    assert list(seen) == ["c"] and seen.pop() == "c" and seen.pop("none") == "none"


def test_a_long_object_is_shown_cut() -> None:
    text = texts.saferepr(["x" * 50] * 1000, 60)
    assert len(text) < 120 and "..." in text


def test_jitter_waits_anything_up_to_the_interval() -> None:
    waits = {times.get_exponential_backoff_interval(2, 3, 100, full_jitter=True) for _ in range(500)}
    assert min(waits) >= 0 and max(waits) <= 16 and len(waits) > 8


def test_a_formatter_of_celerys_name_knows_the_task_that_runs() -> None:
    import logging

    record = logging.LogRecord("shop", logging.ERROR, "f.py", 1, "lost", (), None)
    plain = logs.TaskFormatter("%(task_name)s %(message)s", use_color=False)
    assert plain.format(record) == "??? lost" or plain.format(record).endswith(" lost")
    assert logs.ColorFormatter("%(message)s").format(record).startswith("\x1b[")


def test_the_task_a_worker_has_called_is_known_below_it() -> None:
    seen: list[Any] = []
    with Celery("shop", broker="memory://", set_as_current=False) as app:
        inner = app.task(lambda: seen.append(surroundings.get_current_task().name), name="inner")
        outer = app.task(lambda: (inner(), seen.append(surroundings.get_current_task().name)), name="outer")
        outer.apply()
    assert seen == ["inner", "outer"]
    assert surroundings.get_current_task() is None and surroundings.get_current_worker_task() is None


def test_who_connects_to_finalized_apps_is_called_with_each() -> None:
    seen: list[str] = []
    surroundings.connect_on_app_finalize(
        lambda app: seen.append(app.main) if app.main in ("one", "two") else None
    )
    for name in ("one", "two"):
        with Celery(name, broker="memory://", set_as_current=False) as app:
            app.finalize()
    assert seen == ["one", "two"]


def test_a_camera_looks_at_the_state_now_and_then_and_at_its_end() -> None:
    looked = threading.Event()
    shots: list[int] = []

    class Camera(snapshots.Polaroid):
        clear_after = True

        def on_shutter(self, state: Any) -> None:
            shots.append(len(state.workers))
            looked.set()

    with Celery("shop", broker="memory://", set_as_current=False) as app:
        state = app.events.State()
        now = time.time()
        state.event(
            {"type": "worker-online", "hostname": "w", "timestamp": now, "local_received": now, "clock": 1}
        )
        with Camera(state, freq=0.01):
            assert looked.wait(10)
        count = len(shots)
    assert shots[0] == 1 and shots[-1] == 0 and count >= 2


def test_a_modules_names_are_found_in_the_working_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "depot_of_this_test.py").write_text("value = 1\n")
    monkeypatch.chdir(tmp_path)
    module = names.import_from_cwd("depot_of_this_test")
    (tmp_path / "depot_of_this_test.py").write_text("value = 22\n")
    assert module.value == 1 and names.reload_from_cwd(module).value == 22
