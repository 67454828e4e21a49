"""The pages of results: a list, a page for each, and what can be done about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import template_localtime

from minicelery import _state, states
from minicelery.contrib.django.models import GroupResult, TaskResult
from minicelery.contrib.django.tasks import BESIDE, RUN, RUN_ASYNC
from minicelery.contrib.django.times import moment_of
from minicelery.exceptions import MiniCeleryError, OperationalError
from minicelery.serialization import decode_json

SHOWN = 100_000
"""Characters of a text that are shown."""
TOLD = 10
"""Refusals that an action tells of one by one."""
NOTHING = "–"


class ReadOnly(admin.ModelAdmin):
    """Pages of rows that only workers write."""

    show_full_result_count = False
    list_per_page = 50
    long: tuple[str, ...] = ("result",)
    """Columns that the list does not need."""

    class Media:
        css = {"all": ("minicelery/admin.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Nothing: what was loaded may have been changed by a worker since."""

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer(*self.long)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        hidden = {"show_save": False, "show_save_and_continue": False}
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), **hidden})

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [name for _, options in self.fieldsets for name in options["fields"]]


@admin.register(TaskResult)
class TaskResultAdmin(ReadOnly):
    """Results of tasks."""

    date_hierarchy = "date_done"
    list_display = ("state", "name", "short_id", "worker", "created", "started", "changed", "took")
    list_display_links = ("name", "short_id")
    list_filter = ("status", "date_done", "task_name", "worker", "periodic_task_name")
    search_fields = ("task_id", "task_name", "task_args", "task_kwargs", "worker", "result")
    actions = ("retry", "revoke", "forget")
    long = ("result", "document", "traceback", "meta")
    fieldsets = (
        (None, {"fields": ("state", "name", "task_id", "periodic_task_name", "worker", "queue")}),
        ("Arguments", {"fields": ("arguments", "keyword_arguments")}),
        ("Result", {"fields": ("pretty_result", "pretty_traceback")}),
        ("Times", {"fields": ("created", "started", "changed", "took", "until")}),
        ("More", {"fields": ("retries", "relatives", "pretty_meta"), "classes": ("collapse",)}),
    )

    # -- rows --------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).exclude(task_id__endswith=BESIDE)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """An id is found by the index; whatever else is looked for in all rows."""
        one = queryset.filter(task_id=search_term.strip())
        if "\0" not in search_term and one.exists():
            return one, False
        found: tuple[Any, bool] = super().get_search_results(request, queryset, search_term)
        return found

    def delete_model(self, request: HttpRequest, obj: TaskResult) -> None:
        _forget([obj.task_id])

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        _forget(list(queryset.values_list("task_id", flat=True)))

    # -- columns -----------------------------------------------------------------------------

    @admin.display(description="state", ordering="status")
    def state(self, row: TaskResult) -> SafeString:
        return format_html('<span class="minicelery-state minicelery-{}">{}</span>', row.status, row.status)

    @admin.display(description="task", ordering="task_name")
    def name(self, row: TaskResult) -> str:
        """For Django's own tasks their path."""
        return _path(row) or row.task_name or NOTHING

    @admin.display(description="id", ordering="task_id")
    def short_id(self, row: TaskResult) -> SafeString:
        id = row.task_id
        return format_html('<span title="{}">{}</span>', id, id if len(id) <= 12 else f"{id[:8]}…")

    @admin.display(description="created", ordering="date_created")
    def created(self, row: TaskResult) -> str:
        return _second(row.date_created)

    @admin.display(description="started", ordering="date_started")
    def started(self, row: TaskResult) -> str:
        return _second(row.date_started)

    @admin.display(description="changed", ordering="date_done")
    def changed(self, row: TaskResult) -> str:
        return _second(row.date_done)

    @admin.display(description="took", ordering="date_done")
    def took(self, row: TaskResult) -> str:
        """Known where the state STARTED is stored (task_track_started)."""
        if row.date_started is None or row.date_done is None or row.status not in states.READY_STATES:
            return NOTHING
        return f"{max(0.0, (row.date_done - row.date_started).total_seconds()):.3g} s"

    # -- the page of one -----------------------------------------------------------------------

    @admin.display(description="arguments")
    def arguments(self, row: TaskResult) -> SafeString:
        return _json(row.task_args)

    @admin.display(description="keyword arguments")
    def keyword_arguments(self, row: TaskResult) -> SafeString:
        return _json(row.task_kwargs)

    @admin.display(description="result")
    def pretty_result(self, row: TaskResult) -> SafeString:
        if row.result is None and row.document is not None:
            return _text(f"{len(row.document)} bytes that are not JSON")
        if row.status in states.EXCEPTION_STATES and (told := _told(row.result)):
            return _text(told)
        return _json(row.result)

    @admin.display(description="traceback")
    def pretty_traceback(self, row: TaskResult) -> SafeString:
        return _text(row.traceback or NOTHING)

    @admin.display(description="meta")
    def pretty_meta(self, row: TaskResult) -> SafeString:
        return _json(row.meta)

    @admin.display(description="queue")
    def queue(self, row: TaskResult) -> str:
        return str(_meta(row).get("queue") or NOTHING)

    @admin.display(description="retries")
    def retries(self, row: TaskResult) -> str:
        return str(_meta(row).get("retries", NOTHING))

    @admin.display(description="parent and group")
    def relatives(self, row: TaskResult) -> str:
        meta = _meta(row)
        named = (("parent", meta.get("parent_id")), ("group", meta.get("group_id")))
        return ", ".join(f"{kind} {id}" for kind, id in named if id) or NOTHING

    @admin.display(description="kept until", ordering="expires")
    def until(self, row: TaskResult) -> str:
        try:
            return "for ever" if row.expires is None else _second(moment_of(row.expires))
        except (ValueError, OverflowError, OSError):  # after the year 9999
            return "for ever"

    # -- actions -------------------------------------------------------------------------------

    @admin.action(description="Retry: call again with the same arguments", permissions=["change"])
    def retry(self, request: HttpRequest, queryset: Any) -> None:
        app, sent, refused = _state.get_current_app(), [], []
        for row in queryset.defer(None).defer("result", "document", "traceback"):
            if (reason := _why_no_retry(row)) is not None:
                refused.append(f"{row} is not called again: {reason}")
                continue
            told = {"queue": _meta(row).get("queue"), "shadow": _path(row)}
            options = {name: value for name, value in told.items() if value}
            try:
                result = app.send_task(
                    row.task_name, decode_json(row.task_args), decode_json(row.task_kwargs), **options
                )
            except OperationalError as error:
                self.message_user(request, f"{row} is not called again: {error}", messages.ERROR)
                break
            except (MiniCeleryError, TypeError, ValueError) as error:
                refused.append(f"{row} is not called again: {error}")
            else:
                sent.append(result.id)
        for text in refused[:TOLD]:
            self.message_user(request, text, messages.WARNING)
        if len(refused) > TOLD:
            left = f"{_tasks(len(refused) - TOLD)} more not called again"
            self.message_user(request, left, messages.WARNING)
        if sent:
            self.message_user(request, f"{_tasks(len(sent))} called again: {', '.join(sent[:5])}")

    @admin.action(description="Revoke: don't run it, and end it if it runs", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: Any) -> None:
        found = dict(queryset.values_list("task_id", "status"))
        ids = [id for id, state in found.items() if state not in states.READY_STATES]
        ended = len(found) - len(ids)
        if ended:
            said = "has ended already" if ended == 1 else "have ended already"
            self.message_user(request, f"{_tasks(ended)} {said}", messages.WARNING)
        if not ids:
            return
        try:
            _state.get_current_app().control.revoke(ids, terminate=True)
        except MiniCeleryError as error:
            self.message_user(request, f"not revoked: {error}", messages.ERROR)
        else:
            self.message_user(request, f"{_tasks(len(ids))} revoked")

    @admin.action(description="Forget: remove the result", permissions=["delete"])
    def forget(self, request: HttpRequest, queryset: Any) -> None:
        count = _forget(list(queryset.values_list("task_id", flat=True)))
        self.message_user(request, f"{count} {'result' if count == 1 else 'results'} forgotten")

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        place = () if action_location is None else (action_location,)  # Django 6.1 gives one
        found: dict[str, Any] = super().get_actions(request, *place)
        found.pop("delete_selected", None)  # it is `forget`, with a page in between
        return found


@admin.register(GroupResult)
class GroupResultAdmin(ReadOnly):
    """Groups whose results were saved."""

    date_hierarchy = "date_done"
    list_display = ("group_id", "date_created", "date_done")
    search_fields = ("group_id",)
    fieldsets = ((None, {"fields": ("group_id", "date_created", "date_done", "pretty_result")}),)

    @admin.display(description="result")
    def pretty_result(self, row: GroupResult) -> SafeString:
        return _json(row.result)


def offer_celerys_path(site: admin.AdminSite) -> None:
    """Have ``celery/task/`` below the admin's own path lead to the results."""
    inner = site.get_urls

    def get_urls() -> list[Any]:
        return [path("celery/task/", lead), path("celery/task/<path:rest>", lead), *inner()]

    def lead(request: HttpRequest, rest: str = "") -> HttpResponse:
        try:
            target = reverse(f"{site.name}:minicelery_taskresult_changelist")
        except NoReverseMatch:
            target = reverse("admin:minicelery_taskresult_changelist", current_app=site.name)
        query = request.META.get("QUERY_STRING", "")
        return HttpResponseRedirect(f"{target}{rest}{'?' + query if query else ''}")

    site.get_urls = get_urls


offer_celerys_path(admin.site)


def _why_no_retry(row: TaskResult) -> str | None:
    if row.status not in states.READY_STATES:
        return "it has not ended"
    if not row.task_name:
        return "its task is not known, as result_extended is off"
    for text, kind in ((row.task_args, list), (row.task_kwargs, dict)):
        try:
            known = text is not None and isinstance(decode_json(text), kind)
        except (MiniCeleryError, ValueError, RecursionError):
            known = False
        if not known:
            return "its arguments are not known as they were, only as text"
    return None


def _second(at: datetime | None) -> str:
    """In the time zone of the reader."""
    if at is None:
        return NOTHING
    return str(date_format(template_localtime(at), "Y-m-d H:i:s"))


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _forget(ids: list[str]) -> int:
    """Remove these results, and what is kept beside them; how many there were."""
    count = 0
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        count += TaskResult.objects.filter(task_id__in=some).delete()[0]
        TaskResult.objects.filter(task_id__in=[id + BESIDE for id in some]).delete()
    return count


def _path(row: TaskResult) -> str | None:
    """Of one of Django's own tasks: where it is declared."""
    if row.task_name not in (RUN, RUN_ASYNC):
        return None
    args = _loaded(row.task_args)
    return args[0] if isinstance(args, list) and args and isinstance(args[0], str) else None


def _meta(row: TaskResult) -> dict[str, Any]:
    found = _loaded(row.meta)
    return found if isinstance(found, dict) else {}


def _told(text: str | None) -> str | None:
    """``ValueError: no`` of a failure's result."""
    found = _loaded(text)
    if not isinstance(found, dict) or "exc_type" not in found:
        return None
    said: Any = found.get("exc_message", "")
    parts: Iterable[Any] = said if isinstance(said, list) else [said]
    return f"{found['exc_type']}: {', '.join(map(str, parts))}"


def _loaded(text: str | None) -> Any:
    """What is in it as JSON; None where that can't be read."""
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _json(text: str | None) -> SafeString:
    if text is None:
        return _text(NOTHING)
    if len(text) <= SHOWN and (found := _loaded(text)) is not None:
        text = _indented(found)
    return _text(text)


def _indented(value: Any) -> str:
    """As JSON on many lines; not much more of it than is shown."""
    parts, size = [], 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > SHOWN:
            break
    return "".join(parts)


def _text(text: str) -> SafeString:
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}\n… and more"
    shown = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs can't be sent
    return format_html('<pre class="minicelery-text">{}</pre>', shown)
