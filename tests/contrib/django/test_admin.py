"""The pages of results in Django's admin."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")

from minicelery import Celery, _state, record
from tests.django_inside import use_database
from tests.docs.blocks import code_blocks

LIST = "/admin/minicelery/taskresult/"


PAGE = Path(__file__).parents[3] / "docs" / "django.md"


@dataclass
class Desk:
    """An administrator's browser, an app whose results are in the database, and its results."""

    app: Celery
    client: Any

    def put(self, id: str, state: str, value: Any = 4, **more: Any) -> None:
        """A result as a worker stores it."""
        extra = {
            "name": "shop.add",
            "args": [2, 2],
            "kwargs": {"note": "<b>"},
            "worker": "w1@here",
            "retries": 0,
        }
        extra |= {"queue": "shop", **more.pop("extra", {})}
        value = record.exception_document(value) if isinstance(value, BaseException) else value
        self.app.backend.store([record.encode(id, state, value, extra=extra, **more)])

    def page(self, path: str = LIST) -> str:
        """The text of a page."""
        answer = self.client.get(path, follow=True)
        assert answer.status_code == 200
        return str(answer.content.decode())

    def act(self, action: str, *ids: str) -> str:
        """What the list says after an action on these results."""
        from minicelery.contrib.django.models import TaskResult

        keys = list(TaskResult.objects.filter(task_id__in=ids).values_list("pk", flat=True))
        answer = self.client.post(LIST, {"action": action, "_selected_action": keys}, follow=True)
        assert answer.status_code == 200
        found = re.search(r'<ul class="messagelist">(.*?)</ul>', answer.content.decode(), re.DOTALL)
        assert found is not None
        return " ".join(html.unescape(one) for one in re.findall(r"<li[^>]*>(.*?)</li>", found[1], re.DOTALL))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    use_database(tmp_path)
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    before = _state._default, _state._default_is_chosen, _state._apps.current
    app = Celery("desk", broker=f"sqlite:///{tmp_path}/queue.db", backend="django-db")
    yield Desk(app, client)
    app.close()
    _state._default, _state._default_is_chosen, _state._apps.current = before


def test_the_list_shows_state_name_worker_and_dates_and_can_be_narrowed(desk: Desk) -> None:
    desk.put("an-id", "SUCCESS")
    desk.put("other-id", "FAILURE", KeyError("x"), extra={"name": "shop.boom"})

    whole = desk.page()
    assert '<span class="minicelery-state minicelery-FAILURE">FAILURE</span>' in whole
    assert "w1@here" in whole and "shop.add" in whole and "minicelery/admin.css" in whole
    assert "date_done__" in whole  # the date hierarchy
    for query in ("?status=FAILURE", "?q=boom", "?task_name=shop.boom"):
        assert "other-id" in (narrowed := desk.page(LIST + query)) and "an-id" not in narrowed, query


def test_the_page_of_one_shows_it_whole_and_harmless(desk: Desk) -> None:
    from minicelery.contrib.django.models import TaskResult

    desk.put("an-id", "SUCCESS", {"a": [1, 2]}, parent_id="its-parent")
    desk.put("bad-id", "FAILURE", ValueError("no <script>"), traceback="Traceback …\n<b>")
    pages = {row.task_id: desk.page(f"{LIST}{row.pk}/change/") for row in TaskResult.objects.all()}

    good, bad = pages["an-id"], pages["bad-id"]
    assert "{\n  &quot;a&quot;: [\n    1,\n    2\n  ]\n}" in good
    assert (
        "&quot;note&quot;: &quot;&lt;b&gt;&quot;" in good and "parent its-parent" in good and "shop" in good
    )
    assert "ValueError: no &lt;script&gt;" in bad and "Traceback …\n&lt;b&gt;" in bad
    assert 'name="_save"' not in good and 'name="_continue"' not in good


def test_the_path_of_the_tutorial_leads_to_the_results(desk: Desk) -> None:
    desk.put("an-id", "SUCCESS")
    answer = desk.client.get("/admin/celery/task/?status=SUCCESS")
    assert (answer.status_code, answer.url) == (302, f"{LIST}?status=SUCCESS")
    assert "an-id" in desk.page("/admin/celery/task/")
    desk.client.logout()
    assert "/admin/login/" in desk.client.get("/admin/celery/task/", follow=True).redirect_chain[-1][0]


def test_a_result_is_called_again_with_its_arguments(desk: Desk) -> None:
    desk.put("an-id", "FAILURE", ValueError("no"))
    assert desk.act("retry", "an-id").startswith("1 task called again: ")
    consumer = desk.app.broker.consumer(("shop",), "c", None)
    (delivery,) = consumer.swap([], 1, 1.0)
    consumer.close()
    assert delivery.message.task == "shop.add" and b'[[2, 2], {"note": "<b>"}' in delivery.message.body


@pytest.mark.parametrize(
    ("state", "extra", "why"),
    [
        ("STARTED", {}, "it has not ended"),
        ("FAILURE", {"args": "(2, <object>)"}, "its arguments are not known as they were, only as text"),
        ("FAILURE", {"name": None}, "its task is not known, as result_extended is off"),
    ],
)
def test_what_can_not_be_called_again_is_told_why(desk: Desk, state: str, extra: Any, why: str) -> None:
    desk.put("an-id", state, extra=extra)
    assert desk.act("retry", "an-id").endswith(f"is not called again: {why}")
    assert desk.app.broker.size("shop") == 0


def test_one_that_can_not_be_called_again_does_not_keep_the_others_from_it(desk: Desk) -> None:
    desk.app.conf.task_create_missing_queues = False
    for number in range(14):
        desk.put(f"{number}-id", "FAILURE", ValueError("no"), extra={"queue": "nowhere"})
    desk.put("an-id", "FAILURE", ValueError("no"), extra={"queue": "celery"})
    said = desk.act("retry", "an-id", *(f"{number}-id" for number in range(14)))
    assert said.count("is not called again: ") == 10 and "nowhere" in said
    assert "4 tasks more not called again 1 task called again: " in said
    assert desk.app.broker.size("celery") == 1


def test_what_has_not_ended_is_revoked(desk: Desk) -> None:
    desk.put("an-id", "STARTED")
    desk.put("done-id", "SUCCESS")
    assert desk.act("revoke", "an-id", "done-id") == "1 task has ended already 1 task revoked"
    assert list(desk.app.broker.recall("revoked")) == ["an-id"]


def test_a_result_is_forgotten(desk: Desk) -> None:
    desk.put("an-id", "SUCCESS")
    desk.put("other-id", "SUCCESS")
    assert desk.act("forget", "an-id") == "1 result forgotten"
    assert [one and one.id for one in desk.app.backend.load(["an-id", "other-id"])] == [None, "other-id"]  # type: ignore[union-attr]


def test_who_may_only_look_can_do_nothing(desk: Desk) -> None:
    from django.contrib.auth.models import Permission, User

    desk.put("an-id", "STARTED")
    looker = User.objects.create_user("bob", is_staff=True)
    looker.user_permissions.add(Permission.objects.get(codename="view_taskresult"))
    desk.client.force_login(looker)
    page = desk.page()
    assert "an-id" in page and 'value="revoke"' not in page and 'value="retry"' not in page


def test_what_is_kept_beside_results_of_django_s_own_tasks_is_not_listed_and_goes_with_them(
    desk: Desk,
) -> None:
    from minicelery.contrib.django.models import TaskResult

    call = {"name": "minicelery.django.run", "args": ["shop.jobs.pay", [1], {}, {}]}
    desk.put("an-id", "SUCCESS", extra=call)
    desk.put("an-id.django", "PENDING", extra={"name": None})
    whole = desk.page()
    assert "1 task result" in whole and "shop.jobs.pay" in whole and "an-id.django" not in whole
    assert desk.act("retry", "an-id").startswith("1 task called again: ")
    consumer = desk.app.broker.consumer(("shop",), "c", None)
    (delivery,) = consumer.swap([], 1, 1.0)
    consumer.close()
    message = delivery.message
    assert (message.task, message.headers["shadow"]) == ("minicelery.django.run", "shop.jobs.pay")
    assert desk.act("forget", "an-id") == "1 result forgotten"
    assert not TaskResult.objects.exists()


def test_an_id_is_looked_for_by_the_index_and_other_words_everywhere(desk: Desk) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    desk.put("an-id", "SUCCESS", {"about": "other-id"})
    desk.put("other-id", "SUCCESS")
    with CaptureQueriesContext(connection) as queries:
        found = desk.page(f"{LIST}?q=other-id")
    assert "1 task result" in found
    assert not any("LIKE '%other-id%'" in query["sql"] for query in queries)
    assert "an-id" in desk.page(f"{LIST}?q=about")
    assert "0 task results" in desk.page(f"{LIST}?q=nothing+of+the+kind")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["x" * 300] * 1000, "… and more"),
        (["y" * 80_000, "z" * 90_000], "… and more"),
        ("\ud800", "&quot;?&quot;"),
    ],
)
def test_whatever_a_task_returns_has_a_page(desk: Desk, value: Any, shown: str) -> None:
    from minicelery.contrib.django.models import TaskResult

    desk.put("an-id", "SUCCESS", value, ttl=1e300)
    page = desk.page(f"{LIST}{TaskResult.objects.get().pk}/change/")
    assert shown in page and len(page) < 200_000
    assert "for ever" in page


def test_texts_in_the_table_that_are_no_json_have_a_page(desk: Desk) -> None:
    from minicelery.contrib.django.models import TaskResult

    desk.put("an-id", "FAILURE", ValueError("no"))
    deep = "[" * 100_000
    TaskResult.objects.update(result=deep, meta=deep, task_args=deep, task_kwargs="{")
    page = desk.page(f"{LIST}{TaskResult.objects.get().pk}/change/")
    assert "[[[[" in page
    assert "only as text" in desk.act("retry", "an-id")


def test_a_page_that_is_posted_does_not_undo_what_a_worker_has_written(desk: Desk) -> None:
    from minicelery.contrib.django.models import TaskResult

    desk.put("an-id", "SUCCESS")
    before = TaskResult.objects.values().get()
    assert desk.client.post(f"{LIST}{before['id']}/change/", {"_save": "Save"}).status_code == 302
    assert TaskResult.objects.values().get() == before


def test_the_list_does_not_load_what_it_does_not_show(desk: Desk) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    desk.put("an-id", "SUCCESS", "x" * 1000)
    with CaptureQueriesContext(connection) as queries:
        desk.page()
    assert not any('taskresult"."result"' in query["sql"] for query in queries)
    assert len(queries) < 20


def test_rows_of_django_celery_results_are_taken_over(desk: Desk) -> None:
    from django.db import connection

    from minicelery.contrib.django.models import TaskResult

    rows = {"content_type": "application/json", "content_encoding": "utf-8", "task_name": "shop.add"}
    TaskResult.objects.create(task_id="1", status="SUCCESS", result="4", meta='{"children": []}', **rows)
    TaskResult.objects.create(
        task_id="2", status="FAILURE", traceback="Traceback", meta="{}", task_args='"(2, 2)"',
        result='{"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}', **rows,
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE django_celery_results_taskresult AS SELECT * FROM minicelery_taskresult")
        cursor.execute("DELETE FROM minicelery_taskresult")
        cursor.execute(next(block.text for block in code_blocks(PAGE.read_text()) if block.language == "sql"))
    good, bad = desk.app.AsyncResult("1"), desk.app.AsyncResult("2")
    assert (good.state, good.get(timeout=1), bad.state, repr(bad.result)) == (
        "SUCCESS",
        4,
        "FAILURE",
        "ValueError('no')",
    )
    assert good.date_done is not None
    assert "only as text" in desk.act("retry", "2")
