"""minicelery graph: of documents, of a program's signatures and of results."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from minicelery import Celery, record
from minicelery.groups import GroupResult
from tests.cli.conftest import Project, Ran

Run = Callable[..., Ran]


@pytest.fixture
def shop(project: Project) -> Project:
    """tasks.py with signatures, and an app on a SQLite file."""
    file = project.write_tasks()
    file.write_text(
        file.read_text()
        + "flow = add.s(1, 2) | add.s(3)\n"
        + "def make():\n    return flow\n"
        + "def broken():\n    raise OSError('no')\n"
        + "class Flows:\n    one = flow\n"
    )
    return project


@pytest.fixture
def flow(shop: Project) -> Any:
    add = {
        "task": "tasks.add",
        "args": [1],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    return {"task": "celery.chain", "kwargs": {"tasks": [add, add]}, "subtask_type": "chain"}  # fmt: skip


CHART = 'flowchart LR\n  n1("tasks.add<br/>(1, 2)")\n  n2("tasks.add<br/>(3)")\n  n1 --> n2\n'


@pytest.mark.parametrize("name", ["tasks:flow", "tasks:Flows.one", "tasks:make()"])
def test_a_signature_of_the_program_is_printed_as_mermaid(shop: Project, run: Run, name: str) -> None:
    assert run("graph", name) == Ran(0, CHART, "")


def test_a_file_and_stdin_may_hold_a_signature(
    shop: Project, flow: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write("flow.json", json.dumps(flow))
    from_file = run("graph", "flow.json")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(flow)))
    assert from_file == run("graph", "-")
    assert (from_file.code, from_file.err) == (0, "")
    assert from_file.out.count("tasks.add<br/>(1)") == 2


def test_the_file_s_name_or_the_format_says_what_is_written(shop: Project, run: Run) -> None:
    assert run("graph", "tasks:flow", "-o", "flow.svg") == Ran(0, "", "note: wrote flow.svg\n")
    assert run("-q", "graph", "tasks:flow", "-o", "flow.mmd") == Ran(0, "", "")
    assert run("-q", "graph", "tasks:flow", "-o", "flow.txt", "--format", "svg").code == 0
    svg = (shop.path / "flow.svg").read_text()
    assert svg.startswith("<svg ")
    assert (shop.path / "flow.txt").read_text() == svg == run("graph", "tasks:flow", "--format", "svg").out
    assert (shop.path / "flow.mmd").read_text() == CHART


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "flow.png"], "end with .mmd or .mermaid or .svg"),
        (["-o", "flow"], "end with .mmd"),
        (["-o", "flow.svg", "--format", "mermaid"], "a name for svg, and --format says mermaid"),
        (["--format", "png"], "'png' is not one of"),
    ],
)
def test_a_format_that_there_is_not_is_refused_before_anything_is_drawn(
    shop: Project, run: Run, options: list[str], said: str
) -> None:
    ran = run("graph", "no-such-thing", *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_an_id_is_drawn_with_the_states_of_its_tasks(shop: Project, run: Run) -> None:
    keep(shop, ("a", "SUCCESS", 3, {"children": [[["b", None], None]]}), ("b", "STARTED", None, {}))
    ran = run("-q", "-A", "tasks", "graph", "a")
    assert ran.code == 0
    assert "✓ SUCCESS" in ran.out
    assert "▶ STARTED" in ran.out
    assert "n1 --> n2" in ran.out


def test_a_saved_group_is_drawn_by_its_id(shop: Project, run: Run) -> None:
    with_records(shop, lambda app: GroupResult("g1", [app.AsyncResult(id) for id in "abc"], app=app).save())
    assert "group of 3" in run("-q", "-A", "tasks", "graph", "g1").out


def test_what_is_nowhere_is_an_error_that_says_where_it_was_looked_for(shop: Project, run: Run) -> None:
    for name in ("no-such-id", "nowhere:flow"):
        ran = run("-A", "tasks", "graph", name)
        assert (ran.code, ran.out) == (1, "")
        assert f"error: {name}: no file, no module:name, and no task or saved group" in ran.err


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("tasks:flo", 2, "tasks has no 'flo'\nhint: did you mean 'flow'?"),
        ("tasks:add", 2, "tasks:add is no signature but <@task: tasks.add"),
        ("tasks:broken()", 1, "tasks:broken() has failed: OSError: no"),
        ("tasks:add()", 2, "tasks:add is no function but <@task: tasks.add"),
        ("missing.json", 1, "can't read missing.json: No such file"),
    ],
)
def test_a_name_that_gives_no_signature_is_an_error_in_words(
    shop: Project, run: Run, name: str, code: int, said: str
) -> None:
    ran = run("graph", name)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "bad.json is not JSON"),
        ("[1, 2]", "holds no signature but [1, 2]"),
        ('{"task": 3}', "holds no signature but"),
        ('{"task": "celery.chain", "subtask_type": "chain"}', "no signature that could be called"),
        ('{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": [3]}}', "could be called"),
        ('{"task": "celery.chord", "subtask_type": "chord", "kwargs": {"header": []}}', "could be called"),
        ('{"task": "a", "args": 3}', "could be called"),
        ('{"task": "a", "options": {"link": {"task": 4}}}', "could be called"),
        ('{"task":"celery.chain","subtask_type":"chain","kwargs":{"tasks":[' * 400 + "]}}" * 400, "deeply"),
        ("[" * 200_000, "deeply"),
    ],
)
def test_a_document_that_is_no_signature_is_an_error_in_words(
    project: Project, run: Run, text: str, said: str
) -> None:
    project.write("bad.json", text)
    ran = run("graph", "bad.json")
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err) < 400


def test_a_signature_is_not_called_for_its_picture(shop: Project, run: Run) -> None:
    ran = run("graph", "tasks:flow()")
    assert (ran.code, ran.out) == (2, "")
    assert "hint: without (): tasks:flow\n" in ran.err
    with_records(shop, lambda app: app.broker.size("celery") == 0 or pytest.fail("it was sent"))


def test_a_module_that_fails_says_how(project: Project, run: Run) -> None:
    project.write("sick.py", "import no_such_module\n")
    ran = run("graph", "sick:flow")
    assert ran == Ran(
        1, "", "error: can't import sick: ModuleNotFoundError: No module named 'no_such_module'\n"
    )


def keep(shop: Project, *records: tuple[str, str, Any, dict[str, Any]]) -> None:
    with_records(
        shop,
        lambda app: app.backend.store(
            [record.encode(id, state, value, **more) for id, state, value, more in records]
        ),
    )


def with_records(shop: Project, do: Callable[[Celery], Any]) -> None:
    url = f"sqlite:///{shop.path / 'queue.db'}"
    app = Celery("writer", broker=url, backend=url, set_as_current=False)
    do(app)
    app.close()
