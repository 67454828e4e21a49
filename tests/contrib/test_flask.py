"""Flask: settings, the application context, commands; the patterns that are documented elsewhere."""

from __future__ import annotations

import importlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery import Task, _state, shared_task
from minicelery.contrib.flask import FlaskTask, Minicelery
from minicelery.contrib.testing import run_until_idle
from minicelery.exceptions import ImproperlyConfigured
from minicelery.settings import RenamedSetting
from tests.contrib.project import ran, running
from tests.waiting import wait_until

flask: Any = pytest.importorskip("flask")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    current, default, chosen = _state._apps.current, _state._default, _state._default_is_chosen
    shared, finalized = list(_state.shared), list(_state.finalized)
    _state.shared[:], _state.finalized[:] = [], []  # no app of another test hears of shared tasks
    yield
    _state._apps.current, _state._default, _state._default_is_chosen = current, default, chosen
    _state.shared[:], _state.finalized[:] = shared, finalized


def make_flask(name: str = "shop", **config: Any) -> Any:
    made = flask.Flask(name)
    made.config.update(config)
    return made


EAGER = {"CELERY": {"task_always_eager": True}}


# -- settings ----------------------------------------------------------------------------------


def test_settings_come_from_the_dict_then_from_prefixed_keys() -> None:
    app = make_flask(
        SECRET_KEY="x",
        CELERY={"broker_url": "redis://one", "TASK_IGNORE_RESULT": True},
        CELERY_BROKER_URL="redis://two",
        CELERY_TASK_TRACK_STARTED=True,
    )
    queue = Minicelery(app)
    conf = queue.conf
    assert (conf.broker_url, conf.task_ignore_result, conf.task_track_started) == ("redis://one", True, True)
    assert "SECRET_KEY" not in conf
    assert app.extensions["celery"] is queue
    assert queue.main == "shop"


def test_arguments_of_the_constructor_win_over_the_configuration() -> None:
    app = make_flask(CELERY={"broker_url": "redis://one"})
    assert Minicelery(app, broker="redis://mine").conf.broker_url == "redis://mine"


def test_old_and_new_names_are_merged_and_each_old_one_is_told_once() -> None:
    app = make_flask(
        CELERYD_CONCURRENCY=3, CELERY={"result_backend": "redis://one", "CELERYD_CONCURRENCY": 4}
    )
    with pytest.warns(
        RenamedSetting, match="'CELERYD_CONCURRENCY' is now called 'worker_concurrency'"
    ) as told:
        queue = Minicelery(app)
    assert len(told) == 1
    assert (queue.conf.worker_concurrency, queue.conf.result_backend) == (4, "redis://one")


@pytest.mark.parametrize("given", ["redis://localhost", ["broker_url"]])
def test_a_configuration_that_is_no_dict_is_refused(given: Any) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"app\.config\['CELERY'\] is of type \w+; expected a dict"
    ):
        Minicelery(make_flask(CELERY=given))


def test_a_misspelt_setting_is_answered_when_the_app_is_made() -> None:
    with pytest.warns(UserWarning, match="did you mean 'CELERY_TASK_SERIALIZER'"):
        Minicelery(make_flask(CELERY={"TASK_SERIALISER": "json"}))
    with pytest.raises(ImproperlyConfigured, match="worker_concurrency"):
        Minicelery(make_flask(CELERY={"worker_concurrency": "many"}))


def test_an_app_without_a_flask_app_says_what_is_missing_when_something_is_sent() -> None:
    queue = Minicelery("shop")

    @queue.task
    def look() -> None: ...

    with pytest.raises(ImproperlyConfigured, match=r"belongs to no Flask app.*call init_app\(app\)"):
        look.delay()
    with pytest.raises(RuntimeError, match=r"look belongs to no Flask app yet: call init_app"):
        look()
    with pytest.raises(TypeError, match="expected a Flask app, got 3"):
        queue.init_app(3)  # type: ignore[arg-type]


def test_a_second_celery_app_for_one_flask_app_is_refused() -> None:
    app = make_flask()
    Minicelery(app)
    with pytest.raises(RuntimeError, match="the Flask app 'shop' has a Celery app already"):
        Minicelery(app)


def test_an_app_that_is_given_another_flask_app_forgets_the_first() -> None:
    queue = Minicelery()
    queue.conf.task_acks_late = True
    queue.init_app(make_flask("one", CELERY={"broker_url": "memory://one", "task_track_started": True}))

    @queue.task
    def where() -> str:
        name: str = flask.current_app.name
        return name

    assert where() == "one"
    where.delay()
    queue.init_app(make_flask("two", CELERY={"broker_url": "memory://two"}))
    assert (queue.conf.task_track_started, queue.conf.task_acks_late) == (False, True)
    assert where() == "two"
    where.delay()
    assert queue.broker.url.endswith("two")
    assert queue.broker.size("celery") == 1


# -- the application context -------------------------------------------------------------------


def test_every_kind_of_task_runs_in_the_context() -> None:
    queue = Minicelery()

    class Timed(Task[..., Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["timed", super().__call__(*args, **kwargs)]

    class Counting(Task[..., Any]):
        def run(self) -> str:
            return str(flask.current_app.name)

    def here() -> str:
        return str(flask.current_app.name)

    async def later() -> str:
        return str(flask.current_app.name)

    plain = queue.task(here, name="plain")
    based = queue.task(here, name="based", base=Timed)
    bare = queue.task(here, name="bare", base=Task)
    counting = queue.register_task(Counting())
    awaited = queue.task(later, name="awaited")
    shared = shared_task(here, name="shared", base=Timed)  # type: ignore[call-overload]
    queue.init_app(make_flask(**EAGER))
    found = [task.delay().get() for task in (plain, bare, counting, awaited, based, shared)]
    assert found == ["shop"] * 4 + [["timed", "shop"]] * 2
    assert isinstance(plain, FlaskTask)
    assert isinstance(based, Timed)


def test_a_base_that_is_assigned_or_named_keeps_the_context() -> None:
    class Loud(Task[..., Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return str(super().__call__(*args, **kwargs)).upper()

    assigned, named = Minicelery(), Minicelery(task_cls=Loud)
    assigned.Task = Loud
    for queue in (assigned, named):

        @queue.task
        def here() -> str:
            return str(flask.current_app.name)

        queue.init_app(make_flask(**EAGER))
        assert here.delay().get() == "SHOP"


def test_a_task_called_in_a_view_has_a_context_of_its_own() -> None:
    app = make_flask(**EAGER)
    queue = Minicelery(app)

    @queue.task
    def visit() -> bool:
        clean = "name" not in flask.g
        flask.g.name = "task"
        return clean

    @app.get("/")
    def view() -> Any:
        flask.g.name = "view"
        return {"clean": visit.delay().get(), "direct": visit(), "mine": flask.g.name}

    assert app.test_client().get("/").json == {"clean": True, "direct": True, "mine": "view"}


def test_the_context_is_torn_down_with_what_the_task_raised() -> None:
    app = make_flask(**EAGER)
    queue = Minicelery(app)
    torn: list[Any] = []
    app.teardown_appcontext(torn.append)

    @queue.task
    async def fails() -> None:
        raise ValueError("no")

    assert fails.apply().state == "FAILURE"
    assert [str(error) for error in torn] == ["no"]
    assert not flask.has_app_context()


def test_several_sites_in_one_process_keep_their_tasks_apart_and_the_last_has_the_shared() -> None:
    def here() -> str:
        return str(flask.current_app.name)

    def made(name: str) -> Minicelery:
        url = f"memory://{uuid.uuid4()}"
        return Minicelery(make_flask(name, CELERY={"broker_url": url, "result_backend": url}))

    early = shared_task(here, name="early")
    one, two = made("one"), made("two")
    late = shared_task(here, name="late")
    for queue in (one, two):
        queue.task(here, name="own").delay()
    assert one.flask_app is not None
    with one.flask_app.app_context():
        early.delay()
        late.delay()
        one.tasks["early"].delay()
    runs = {queue: [(run.name, run.value) for run in run_until_idle(queue)] for queue in (one, two)}
    assert runs[one] == [("own", "one"), ("early", "one")]
    assert runs[two] == [("own", "two"), ("early", "two"), ("late", "two")]


SHOP = """\
import asyncio, time
from flask import Flask, current_app, g
from minicelery import shared_task
from minicelery.contrib.flask import Minicelery

queue = Minicelery()

def create_app():
    app = Flask(__name__)
    app.config["CELERY"] = {"broker_url": "sqlite:///queue.db", "result_backend": "sqlite:///queue.db"}
    queue.init_app(app)

    @app.teardown_appcontext
    def down(error):
        with open("torn", "a") as file:
            file.write(f"{g.get('number')} {error}\\n")

    return app

def enter(number):
    clean = "number" not in g
    g.number = number
    return clean

def leave(number):
    return [current_app.name, g.number == number]

@queue.task
def plain(number):
    clean = enter(number)
    time.sleep(0.01)
    return [clean, *leave(number)]

@shared_task
async def later(number):
    clean = enter(number)
    await asyncio.sleep(0.01)
    return [clean, *leave(number)]

@queue.task
def fails(number):
    enter(number)
    raise ValueError(number)
"""


@pytest.mark.parametrize(
    "command",
    [
        "flask --app shop celery worker -c 2 -l info",
        "flask --app shop celery worker -c 1 --pool-start-method spawn -l info",
        "minicelery -A shop:create_app worker --pool threads -c 4 -l info",
        "minicelery -A shop:create_app() worker --pool asyncio -c 20 -l info",
    ],
)
def test_nothing_leaks_from_one_task_into_another(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shop = importlib.import_module("shop")
    try:
        app = shop.create_app()
        with running(tmp_path, command.split(), " ready"):
            results = []
            for number in range(0, 30, 3):
                results += [shop.plain.delay(number), shop.later.delay(number + 1)]
                failed = shop.fails.delay(number + 2)
            assert [result.get(timeout=30) for result in results] == [[True, "shop", True]] * len(results)
            assert failed.get(timeout=30, propagate=False).args == (29,)
            torn = tmp_path / "torn"
            wait_until(lambda: len(torn.read_text().splitlines()) == 30, 20)
            assert {line for line in torn.read_text().splitlines() if not line.endswith("None")} == {
                f"{number} {number}" for number in range(2, 30, 3)
            }
        assert app.extensions["celery"] is shop.queue
        shop.queue.close()
    finally:
        sys.modules.pop("shop", None)


def test_the_command_of_flask_has_all_of_minicelerys() -> None:
    app = make_flask(CELERY={"broker_url": "memory://command"})
    queue = Minicelery(app)

    @queue.task(name="shop.look")
    def look(number: int) -> None: ...

    runner = app.test_cli_runner()
    called = runner.invoke(args=["celery", "call", "shop.look", "7", "--priority", "3"])
    assert (called.exit_code, len(called.stdout.strip())) == (0, 36), called.output
    assert queue.broker.size("celery") == 1
    wrong = runner.invoke(args=["celery", "wroker"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: no such command 'wroker'\nhint: did you mean 'worker'?\n"
    assert "Run a command of minicelery, such as worker" in runner.invoke(args=["--help"]).output
    assert "--pool" in runner.invoke(args=["celery", "worker", "--help"]).output


# -- what others document ----------------------------------------------------------------------

DOCUMENTED = """\
from flask import Flask, request
from minicelery import Celery, Task, shared_task
from minicelery.result import AsyncResult

def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app

@shared_task(ignore_result=False)
def add_together(a: int, b: int) -> int:
    from flask import current_app
    assert current_app.name == "example"
    return a + b

def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        CELERY=dict(
            broker_url="redis://localhost",
            result_backend="redis://localhost",
            task_ignore_result=True,
        ),
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    @app.post("/add")
    def start_add() -> dict[str, object]:
        a = request.form.get("a", type=int)
        b = request.form.get("b", type=int)
        result = add_together.delay(a, b)
        return {"result_id": result.id}

    @app.get("/result/<id>")
    def task_result(id: str) -> dict[str, object]:
        result = AsyncResult(id)
        return {
            "ready": result.ready(),
            "successful": result.successful(),
            "value": result.result if result.ready() else None,
        }

    return app
"""
MAKE_CELERY = """\
from example import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
"""
ASK = """\
import json, sys, time
from example import create_app

client = create_app().test_client()
id = client.post("/add", data={"a": 2, "b": 3}).json["result_id"]
end = time.monotonic() + 15
while not (answer := client.get(f"/result/{id}").json)["ready"] and time.monotonic() < end:
    time.sleep(0.02)
print(json.dumps(answer))
"""


def test_the_pattern_of_flasks_documentation_runs(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(DOCUMENTED)
    (tmp_path / "make_celery.py").write_text(MAKE_CELERY)
    (tmp_path / "ask.py").write_text(ASK)
    urls = {"FLASK_CELERY__broker_url": redis_url, "FLASK_CELERY__result_backend": redis_url}
    command = ["minicelery", "-A", "make_celery", "worker", "--loglevel", "INFO", "-c", "1"]
    with running(tmp_path, command, " ready", **urls):
        asked = ran(tmp_path, "ask", **urls)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout) == {"ready": True, "successful": True, "value": 5}


ONE_FILE = """\
from flask import Flask
from minicelery import Celery

def make_celery(app):
    celery = Celery(
        app.import_name,
        broker=app.config['CELERY_BROKER_URL'],
        backend=app.config['CELERY_RESULT_BACKEND']
    )
    celery.conf.update(app.config)

    class ContextTask(celery.Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery.Task = ContextTask
    return celery

app = Flask(__name__)
app.config.update(
    CELERY_BROKER_URL='sqlite:///queue.db',
    CELERY_RESULT_BACKEND='sqlite:///queue.db',
    CELERY_TASK_TRACK_STARTED=True,
    CELERYD_CONCURRENCY=3,
    SECRET_KEY='x',
)
celery = make_celery(app)
"""


def test_a_flask_app_in_one_file_is_found_with_its_settings_old_and_new(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ONE_FILE)
    report = ran(tmp_path, "minicelery", "-A", "app", "report")
    assert report.returncode == 0, report.stderr
    for line in (
        r"task_track_started +True",
        r"worker_concurrency +3",
        r"result_backend +sqlite:///queue\.db",
    ):
        assert re.search(line, report.stdout)
    (warned,) = [line for line in report.stderr.splitlines() if "CELERYD_CONCURRENCY" in line]
    assert "the setting 'CELERYD_CONCURRENCY' is now called 'worker_concurrency'" in warned


def test_a_module_with_a_flask_factory_only_says_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "fac.py").write_text(
        "def create_app():\n    from shop import create_app\n    return create_app()\n"
    )
    named = ran(tmp_path, "minicelery", "-A", "fac", "report")
    assert (named.returncode, named.stdout) == (2, "")
    assert named.stderr == (
        "error: no Celery app in 'fac'.\nhint: found factory create_app(); try -A \"fac:create_app()\"\n"
    )
