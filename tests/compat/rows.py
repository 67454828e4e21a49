"""What Celery has for tasks, calls, queues, signals, workers, control and events, and what minicelery makes of it.

The one list of which docs/compatibility.md is made (`tests.compat.test_the_list`) and which
says where each item is proven: `proof` is a test function of this folder, followed by its
case in brackets where it has several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["served", "served better", "refused", "later"]


@dataclass(frozen=True, slots=True)
class Row:
    """One item of Celery's."""

    section: str
    name: str
    verdict: Verdict
    proof: str
    why: str = ""  # for all that is not plainly served


@dataclass(frozen=True, slots=True)
class _Item:
    verdict: Verdict
    name: str
    proof: str
    why: str


def served(name: str, proof: str, why: str = "") -> _Item:
    return _Item("served", name, proof, why)


def better(name: str, proof: str, why: str) -> _Item:
    return _Item("served better", name, proof, why)


def refused(name: str, proof: str, why: str) -> _Item:
    return _Item("refused", name, proof, why)


def later(name: str, proof: str, why: str) -> _Item:
    return _Item("later", name, proof, why)


def _section(title: str, *items: _Item) -> list[Row]:
    return [Row(title, item.name, item.verdict, item.proof, item.why) for item in items]


def _all(test: str, *names: str) -> list[_Item]:
    """Plainly served items, each a case of one test."""
    return [served(name, f"{test}[{name}]") for name in names]


_FIELD = "test_a_field_of_the_request_is_celerys"
_HEADER = "test_an_option_is_in_the_headers_of_the_message_and_in_the_request"
_PROPERTY = "test_an_option_is_in_the_properties_of_the_message_and_in_the_request"
_PLACE = "test_a_call_goes_where_it_is_told_to"
_TAKEN = "test_an_option_of_celerys_connections_is_taken_and_not_sent"
_STAMPED = "test_stamps_are_in_the_requests_of"
_REFUSED = "test_what_cannot_work_is_refused_at_the_call"
_LIFE = "test_a_signal_of_a_workers_life_is_sent_once_with_celerys_keywords"

_SENT = (
    "soft_time_limit above time_limit",
    "a limit below 0",
    "an option that is nearly a known one",
    "an empty task_id",
)

ROWS: list[Row] = [
    *_section(
        "Declaring tasks",
        served("name", "test_a_task_is_run_by_the_name_it_was_given"),
        served("base", "test_the_base_gives_a_task_its_attributes_and_handlers"),
        served("bind", "test_bind_gives_the_function_its_task"),
        served("shared", "test_a_shared_task_belongs_to_every_app_and_another_to_its_own"),
        served("lazy", "test_a_lazy_task_follows_the_apps_base_until_the_app_is_finalized"),
        served("filter", "test_the_filter_is_given_the_task_and_returns_what_the_decorator_does"),
        better(
            "typing", "test_typing_checks_arguments_at_the_call_and_off_it_does_not",
            "the error names the task and its signature",
        ),
        served("pydantic", "test_pydantic_makes_models_of_arguments_and_plain_data_of_results"),
        served("pydantic_strict", "test_pydantic_strict_takes_no_text_for_a_number"),
        served("pydantic_context", "test_validators_see_the_pydantic_context"),
        served("pydantic_dump_kwargs", "test_models_are_dumped_as_pydantic_dump_kwargs_say"),
        served("any other attribute", "test_any_other_option_is_an_attribute_of_the_task"),
        better(
            "an option nearly known", "test_an_option_that_is_nearly_a_known_one_is_refused",
            "an error with the right name; Celery makes an attribute of it that nobody reads",
        ),
        served(
            "task_annotations", "test_annotations_of_the_settings_change_tasks",
            "from the app's first use on: `app.tasks`, a call, a worker",
        ),
        served("app.Task = …", "test_the_apps_task_class_is_the_base_of_all_that_have_none"),
        served("class-based tasks", "test_a_class_with_run_is_registered_as_a_task"),
        served("Task[…]", "test_a_task_class_takes_type_parameters_and_a_task_pickles_by_its_name"),
        served("name, docstring and signature of the function", "test_a_task_looks_like_its_function"),
    ),
    *_section(
        "Attributes of tasks",
        *_all("test_a_task_is_tried_again_so_often", "max_retries", "max_retries=1"),
        served("max_retries=None", "test_max_retries_none_is_for_ever"),
        *_all(
            "test_a_retry_without_a_time_waits_the_default_delay",
            "default_retry_delay", "default_retry_delay=7",
        ),
        served("autoretry_for", "test_autoretry_for_tries_again_after_these_exceptions"),
        served("dont_autoretry_for", "test_dont_autoretry_for_excepts_some_of_them"),
        served("retry_kwargs", "test_retry_kwargs_are_given_to_automatic_retries"),
        *_all(
            "test_automatic_retries_wait_longer_each_time",
            "retry_backoff", "retry_backoff=5", "retry_backoff_max",
        ),
        served("retry_jitter", "test_jitter_is_on_and_spreads_the_waits_from_nothing_to_the_whole"),
        better(
            "rate_limit", "test_a_rate_limit_holds_for_all_workers_together",
            "for all workers together, and what waits is in the broker; in Celery each worker counts for itself",
        ),
        served("ignore_result", "test_an_ignored_result_is_not_stored"),
        served("store_errors_even_if_ignored", "test_errors_of_ignored_tasks_are_stored_where_asked"),
        served("trail", "test_trail_records_what_a_task_has_sent_as_its_children"),
        served("send_events", "test_a_task_with_send_events_off_is_not_told_of"),
        served("serializer", "test_the_serializer_of_a_task_writes_its_messages"),
        served("compression", "test_the_compression_of_a_task_packs_its_messages"),
        *_all(
            "test_a_limit_of_a_task_is_in_its_messages_and_holds_in_the_worker",
            "time_limit", "soft_time_limit",
        ),
        served("backend", "test_the_backend_is_the_apps"),
        refused(
            "backend=…", "test_a_part_of_celerys_machinery_cannot_be_put_in_place_of_ours[backend]",
            "a task has its app's results",
        ),
        *[
            refused(
                name, f"test_a_part_of_celerys_machinery_cannot_be_put_in_place_of_ours[{name}]",
                "the error says what to override instead",
            )
            for name in ("Strategy", "Request")
        ],
        served("track_started", "test_started_is_stored_where_it_is_tracked"),
        served("throws", "test_what_a_task_throws_on_purpose_is_logged_without_a_traceback"),
        served("expires", "test_calls_of_a_task_that_expires_are_not_run_too_late"),
        served("priority", "test_the_priority_of_a_task_is_in_its_messages"),
        served("resultrepr_maxsize", "test_a_result_is_logged_up_to_its_size"),
        *_all(
            "test_an_address_as_attribute_works_and_warns_as_celerys", "queue", "exchange", "routing_key"
        ),
        better(
            "acks_late=False", "test_an_early_task_whose_child_died_has_failed",
            "also when the whole worker dies; Celery then leaves the state PENDING",
        ),
        better(
            "acks_late", "test_a_late_task_runs_again_when_its_worker_is_gone",
            "within seconds, not after `visibility_timeout`",
        ),
        better(
            "reject_on_worker_lost", "test_reject_on_worker_lost_runs_a_late_task_again_when_its_child_died",
            "up to `task_delivery_cap` times, then the dead letters; in Celery without end",
        ),
        served("retry_on_worker_lost", "test_retry_on_worker_lost_makes_a_retry_of_a_death"),
        better(
            "acks_on_failure", "test_a_late_task_that_fails_is_kept_where_failures_are_not_acknowledged",
            "kept with the dead letters; Celery drops it on Redis",
        ),
        served(
            "acks_on_timeout",
            "test_a_late_task_past_its_limit_runs_again_where_timeouts_are_not_acknowledged",
        ),
        better(
            "Reject", "test_a_task_may_reject_its_message_or_have_it_queued_again",
            "what is not queued again is kept with the dead letters; Celery drops it",
        ),
        served("Ignore", "test_a_task_that_raises_ignore_stores_no_state"),
    ),
    *_section(
        "Methods of tasks",
        served("run, __call__", "test_run_is_the_function_and_a_call_of_the_task_runs_it_here"),
        served("delay", "test_delay_sends_its_arguments"),
        served("apply_async", "test_apply_async_sends_arguments_and_options"),
        served("apply", "test_apply_runs_the_task_here_with_handlers_and_retries"),
        better("apply_many", "test_many_calls_leave_in_one_trip", "not in Celery: many calls in one trip"),
        served("task_always_eager", "test_always_eager_runs_calls_here_through_the_serializer"),
        served("s, si", "test_s_and_si_make_signatures_that_are_sent_later"),
        *_all("test_a_signature_holds_arguments_and_options", "signature", "subtask"),
        served("signature_from_request", "test_a_signature_from_the_request_makes_the_same_call_again"),
        *_all(
            "test_a_call_in_django_may_wait_until_the_transaction_is_committed",
            "delay_on_commit", "apply_async_on_commit",
        ),
        served("update_state", "test_update_state_stores_what_the_task_reports"),
        served("send_event", "test_send_event_tells_what_the_task_wants_told"),
        served("AsyncResult", "test_async_result_finds_the_result_of_a_call"),
        served("shadow_name", "test_shadow_name_gives_calls_another_name_in_logs"),
        served("push_request, pop_request", "test_a_pushed_request_is_the_tasks_until_it_is_popped"),
        served("on_bound", "test_on_bound_is_told_the_app"),
        served("annotate", "test_annotate_applies_the_apps_annotations"),
        refused(
            "start_strategy", "test_a_task_has_no_strategy_for_celerys_consumer", "there is no such consumer"
        ),
        served("add_around", "test_add_around_wraps_a_method"),
    ),
    *_section(
        "Signatures and compositions",
        *_all(
            "test_a_name_of_the_canvas_is_where_celery_has_it",
            "Signature", "chain", "chord", "chunks", "group", "maybe_signature", "signature", "xmap", "xstarmap",
        ),
        *_all(
            "test_a_signature_of_this_form_is_sent_and_called",
            "task.s", "task.signature", "task.subtask", "signature(name)", "signature(task)",
            "app.signature(name)", "a dict", "a dict with what it needs", "JSON",
        ),
        served("arguments of the call", "test_arguments_of_the_call_come_first"),
        served("keyword arguments of the call", "test_keyword_arguments_of_the_call_win"),
        served("options of the call", "test_options_of_the_call_win"),
        served("immutable", "test_an_immutable_signature_keeps_its_arguments_and_takes_options"),
        *_all(
            "test_a_signature_has_this_of_celerys",
            "set", "clone", "replace", "freeze", "link", "link_error", "on_error", "set_immutable",
            "flatten_links", "reprcall", "unchain_tasks", "type, task, name", "args, kwargs", "id, app",
        ),
        served("~signature", "test_a_tilde_calls_and_waits"),
        *_all(
            "test_a_bar_makes_what_it_makes_in_celery",
            "task | task", "task | chain", "chain | chain", "task | group", "task | group of one",
            "task | empty group", "chain | empty group", "group | task", "chain that ends in a group | task",
            "group | group", "group | empty group", "chord | task", "chord | chord",
            "chain that ends in a chord | task", "chain that ends in a chord | group", "chain(a)",
            "chain(a, b) is a | b", "chain([a, b])", "chain of a generator", "empty chord",
        ),
        better(
            "group of groups", "test_a_bar_makes_what_it_makes_in_celery[group of groups]",
            "one list, in the order in which they are written; Celery turns the inner ones round",
        ),
        served("a chain's message", "test_a_chain_is_sent_as_its_first_task_with_the_rest_reversed"),
        served("a chain's result", "test_the_result_of_a_chain_is_its_last_tasks_and_knows_its_parents"),
        served("a chain's links", "test_a_callback_of_a_chain_is_its_last_tasks_and_an_errback_every_tasks"),
        served("a chain that fails", "test_what_follows_a_failed_task_of_a_chain_has_failed_too"),
        served("a group's result", "test_the_result_of_a_group_is_the_list_of_its_members_results"),
        served("a group's options", "test_options_of_a_group_are_all_its_members"),
        served("an empty group", "test_an_empty_group_has_an_empty_result"),
        served("group.link", "test_a_callback_of_a_group_follows_its_first_member_only"),
        served("group.link_error", "test_an_errback_of_a_group_follows_every_member"),
        *[
            refused(
                f"{option}= of a call of a group", f"test_a_call_of_a_group_takes_no_links[{option}]",
                "TypeError, as in Celery: use a chord, or the members' own",
            )
            for option in ("link", "link_error")
        ],
        served("group.skew", "test_skew_spreads_the_members_over_time"),
        served("a chord's result", "test_the_body_of_a_chord_gets_the_results_in_order"),
        served("a chord that fails", "test_a_failed_part_fails_the_body_and_is_named"),
        served("a chord's countdown", "test_a_countdown_of_a_chord_delays_its_parts"),
        served("chord.link_error", "test_an_errback_of_a_chord_is_the_bodys"),
        served(
            "task_allow_error_cb_on_chord_header",
            "test_an_errback_of_a_chord_is_every_parts_too_if_the_setting_says_so",
        ),
        served(
            "an errback of three arguments",
            "test_an_errback_of_more_arguments_is_called_with_the_request_and_the_error",
        ),
        *[
            served(f"{name} of many arguments", f"test_one_task_is_called_with_each_of_many_arguments[{name}]")
            for name in ("map", "xmap", "starmap", "xstarmap", "chunks", "chunks().group")
        ],
        *[
            served(f"Task.replace with {name}", f"test_what_replaces_a_task_has_its_id_and_what_follows_it[{name}]")
            for name in ("a task", "a chain", "a chord")
        ],
        served("Task.replace with a group", "test_a_group_that_replaces_a_task_gives_it_the_list"),
        *[
            refused(
                f"Task.replace with {name}", f"test_what_cannot_replace_a_task_is_refused[{name}]",
                "ImproperlyConfigured, as in Celery",
            )
            for name in ("an empty chain", "a part of a chord")
        ],
        better(
            "Task.add_to_chord", "test_a_task_adds_to_the_chord_that_it_is_a_part_of",
            "on every backend that counts; Celery: Redis only",
        ),
    ),
    *_section(
        "Stamps",
        *_all(
            "test_a_visitor_is_called_at",
            "on_signature", "on_chain_start", "on_chain_end", "on_group_start", "on_group_end",
            "on_chord_header_start", "on_chord_header_end", "on_chord_body", "on_callback", "on_errback",
        ),
        *_all(_STAMPED, "a task", "a retry", "links of a chain", "members of a group", "a callback", "an errback"),
        better(
            "a chord and its body", f"{_STAMPED}[a chord and its body]",
            "the body without a visitor too, and no stamp of a neighbour; Celery leaves it out, and mixes them",
        ),
        served("stamped_headers, stamps", "test_a_message_carries_its_stamps_as_celerys"),
        served("append_stamps", "test_stamps_are_appended_if_told_so"),
    ),
    *_section(
        "Handlers, and the order of a run",
        served("before_start", "test_before_start_is_called_before_the_function"),
        served("on_success", "test_on_success_gets_the_value"),
        served("on_retry", "test_on_retry_gets_the_cause"),
        served("on_failure", "test_on_failure_gets_the_exception_and_its_traceback"),
        served("after_return", "test_after_return_is_called_when_a_task_has_ended"),
        *[
            served(f"after_return: not for {state}", f"test_after_return_is_not_called_for_an_attempt_that_is_no_end[{state}]")
            for state in ("RETRY", "IGNORED", "REJECTED")
        ],
        served("on_replace", "test_a_replacement_is_shown_to_on_replace"),
        served("order of handlers and signals", "test_handlers_and_signals_come_in_celerys_order"),
        better(
            "links, result, acknowledgement",
            "test_what_is_linked_is_sent_with_the_outcome_and_recorded_as_a_child",
            "one step after the handlers; in Celery three steps, the result before `on_success`",
        ),
        better(
            "a handler that fails", "test_a_handler_that_fails_is_logged_and_changes_nothing",
            "logged, and the result stays; in Celery `on_failure` is then called again with the handler's error",
        ),
        better(
            "state of an attempt", "test_attempts_in_threads_share_no_state",
            "never on the shared task object, so threads and coroutines don't mix it up",
        ),
    ),
    *_section(
        "Options of a call",
        *_all("test_arguments_arrive", "args", "kwargs"),
        served("arguments that don't fit", "test_arguments_that_do_not_fit_are_refused_at_the_call"),
        better(
            "an argument that can't be carried", "test_an_argument_that_cannot_be_carried_is_named",
            "the error names it, its type and what to do",
        ),
        served("task_id", "test_the_task_id_is_the_one_given"),
        better("countdown", "test_a_countdown_delays_the_run", "waits in the broker, not in a worker"),
        better("eta", "test_an_eta_delays_the_run_to_that_time", "waits in the broker, not in a worker"),
        better(
            "eta without a zone", "test_a_naive_eta_is_read_in_the_timezone_of_the_settings",
            "in `timezone`; Celery's worker reads it as UTC whatever the setting says",
        ),
        served("countdown and eta", "test_of_countdown_and_eta_the_countdown_wins"),
        *_all("test_a_call_that_has_expired_is_revoked", "expires", "expires (datetime)"),
        better(
            "publish failure", "test_a_publish_that_fails_is_an_operational_error_within_its_deadline",
            "`OperationalError` within `task_publish_deadline`, all attempts together",
        ),
        *_all("test_a_call_says_how_often_its_publish_is_tried", "retry", "retry_policy"),
        *_all(_PLACE, "queue", "exchange", "routing_key", "exchange_type", "declare", "router"),
        served("an unknown queue", "test_a_queue_that_may_not_be_made_is_refused"),
        better(
            "priority", "test_the_priority_goes_with_the_message",
            "checked at the call, with the accepted values in the error",
        ),
        served("serializer", "test_the_serializer_is_the_calls"),
        served("compression", "test_the_compression_is_the_calls"),
        served("headers", "test_headers_are_the_requests"),
        served("stamped_headers, stamps", "test_stamps_are_carried"),
        *_all(
            _HEADER, "shadow", "ignore_result", "time_limit", "soft_time_limit", "root_id", "parent_id",
            "group_id", "group_index", "retries", "replaced_task_nesting", "argsrepr", "kwargsrepr",
        ),
        *_all(_PROPERTY, "reply_to", "delivery_mode", "any other option"),
        *[
            served(name, f"{_TAKEN}[{name}]", "accepted; connections are minicelery's own")
            for name in (
                "connection", "producer", "publisher", "timeout", "confirm_timeout", "mandatory", "immediate"
            )
        ],
        served("link", "test_a_link_is_called_with_the_value"),
        served("link_error", "test_a_link_error_is_called_with_the_id_of_the_failed_call"),
        served("chain", "test_a_chain_of_calls_goes_on_step_by_step"),
        better(
            "chord", "test_a_part_of_a_chord_of_celerys_carries_its_body",
            "of chords that Celery sends: counted where the results are in Redis, by what `tests/interop` proves",
        ),
        served("add_to_parent", "test_a_call_made_in_a_task_is_its_child_unless_it_is_not_added"),
        better(
            "errors name the task", "test_the_task_named_in_an_error_is_the_one_called",
            "task, option, value and accepted values",
        ),
        *[
            better(
                name, f"{_REFUSED}[{name}]",
                "an error at the call with task, option and value; Celery sends it"
                if name in _SENT
                else "the error names task, option, value and what is accepted",
            )
            for name in (
                "soft_time_limit above time_limit", "a limit below 0", "a countdown that is no number",
                "an eta that is no datetime", "expires that is no time", "a queue that is no name",
                "an unknown serializer", "an unknown compression", "a link that is no signature",
                "a link_error that is no signature", "headers that are no dict",
                "an option that is nearly a known one", "an empty task_id",
                "an unknown key of the retry_policy", "a bad value in the retry_policy",
            )
        ],
    ),
    *_section(
        "The request of a task",
        *_all(
            _FIELD, "args", "kwargs", "id", "task", "called_directly", "is_eager", "retries",
            "correlation_id", "reply_to", "root_id", "parent_id", "group", "group_index", "shadow", "eta",
            "expires", "headers", "hostname", "ignore_result", "timelimit", "time_limit", "soft_time_limit",
            "replaced_task_nesting", "stamped_headers", "stamps", "utc", "chord", "children",
        ),
        served("delivery_info", "test_the_delivery_info_tells_where_the_message_came_by"),
        served("delivery_info: redelivered", "test_a_message_that_comes_again_is_marked_as_redelivered"),
        *_all("test_what_is_linked_is_in_the_request", "callbacks", "errbacks"),
        served("chain", "test_the_rest_of_the_chain_is_in_the_request"),
        served("children of a running task", "test_what_a_task_sends_becomes_a_child_of_its_request"),
        served("properties", "test_the_properties_are_those_of_the_message"),
        served("origin", "test_the_origin_names_the_sending_process"),
        *[
            served(name, f"test_the_logs_options_are_in_the_request[{name}]", "None in a worker, as in Celery's pools")
            for name in ("loglevel", "logfile")
        ],
        served("called directly", "test_called_directly_a_task_has_an_empty_request"),
        served("eager", "test_run_at_once_a_task_knows_it"),
        served("attributes of one's own", "test_an_attribute_set_on_the_request_lasts_as_long_as_the_attempt"),
        served("eta of a countdown", "test_an_expired_or_delayed_call_tells_the_times_of_the_message"),
    ),
    *_section(
        "Retries",
        served("same id, one retry more, same queue", "test_a_retry_has_the_same_id_and_one_retry_more_in_the_same_queue"),
        served("retry raises Retry", "test_retry_ends_the_attempt_by_raising"),
        served("throw=False", "test_a_retry_that_does_not_throw_is_returned"),
        better(
            "publishing a retry", "test_a_retry_leaves_in_the_same_step_as_the_attempts_end",
            "in one step with the end of the attempt: neither lost nor doubled",
        ),
        better(
            "a retry that can't be made", "test_a_retry_that_cannot_be_made_fails_the_task_with_the_reason",
            "FAILURE with the reason; Celery rejects the message",
        ),
        served("called directly, with exc", "test_called_directly_it_raises_what_it_was_given"),
        served("called directly, in except", "test_called_directly_it_raises_the_exception_at_hand"),
        served("past the limit, with exc", "test_past_the_limit_it_ends_in_the_exception_given"),
        served("past the limit, without", "test_past_the_limit_without_one_it_says_what_was_called"),
        served("past the limit, inside except", "test_inside_except_the_limit_is_the_same_error"),
        *_all(
            "test_the_limit_is_the_calls_or_the_tasks",
            "max_retries=None given to retry means the default",
            "max_retries=None as attribute means for ever",
            "max_retries given to retry beats the attribute",
        ),
        better(
            "an override lasts one attempt",
            "test_an_override_lasts_one_attempt_and_sits_on_no_shared_object",
            "and is not stored on the task, where other threads would see it",
        ),
        *_all(
            "test_a_retry_waits", "without a time: default_retry_delay", "countdown", "eta"
        ),
        served("other options", "test_other_options_are_those_of_the_next_call"),
        served("autoretry_for", "test_autoretry_is_for_what_is_listed_and_never_for_retry_ignore_or_reject"),
        served("retry_backoff: not for retry()", "test_the_backoff_is_that_of_automatic_retries_only"),
        served("retry_backoff, full jitter", "test_the_backoff_doubles_to_its_longest_with_full_jitter"),
        served("state RETRY with the exception", "test_the_state_is_retry_with_the_exception_until_the_next_attempt"),
        served("errbacks at the final failure only", "test_errbacks_are_called_at_the_final_failure_only"),
        served("links after the last attempt", "test_links_are_called_after_the_attempt_that_succeeds"),
        served("eager: at once, without delay", "test_run_at_once_retries_are_made_at_once"),
        *_all(
            "test_new_arguments_are_merged_by_name",
            "new args replace those of the same names", "new kwargs replace those of the same names",
            "args and kwargs replace all",
        ),
        served("links, headers, limits, expiry are carried on", "test_a_retry_carries_links_headers_and_limits_on"),
    ),
    *_section(
        "Results",
        *_all(
            "test_a_result_tells_what_celerys_does", "id, task_id", "backend, app", "parent", "children",
            "result, info", "state, status", "traceback", "name", "args, kwargs", "worker", "retries, queue",
            "date_done", "supports_native_join", "exists", "ready, successful, failed", "as_tuple", "as_list",
            "==, hash",
        ),
        better(
            "known", "test_a_known_result_is_told_from_an_unknown_one",
            "`exists()` as a property; Celery has none",
        ),
        served("ignored", "test_an_ignored_result_is_none_at_once"),
        *_all(
            "test_a_result_is_waited_for_as_celerys_is", "get", "timeout", "propagate", "interval, on_interval",
            "no_ack", "callback", "on_message", "maybe_throw, maybe_reraise", "throw", "AsyncResult.TimeoutError",
        ),
        better(
            "follow_parents", "test_a_result_is_waited_for_as_celerys_is[follow_parents]",
            "all earlier steps are asked for in one trip, and again when the result is a failure: the earlier "
            "one's exception comes whichever was stored first",
        ),
        better(
            "disable_sync_subtasks, allow_join_result", "test_waiting_inside_of_a_task_is_refused_unless_allowed",
            "in every pool, and for groups; the error says what to do instead",
        ),
        better(
            "then(callback)", "test_then_calls_back_once_when_the_result_is_there",
            "without anybody waiting: Celery calls back while somebody waits for a result",
        ),
        better(
            "then(on_error)", "test_then_tells_on_error_of_a_failure",
            "called with the exception in place of the callback; Celery calls it only if `get` has raised before",
        ),
        served("then(weak)", "test_a_weak_then_needs_a_result_that_is_kept"),
        *_all(
            "test_what_follows_from_a_task_is_found", "iterdeps", "iterdeps(intermediate=True)", "collect", "get_leaf",
        ),
        better(
            "IncompleteStream", "test_what_is_not_done_is_an_incomplete_stream", "the error names the task",
        ),
        better(
            "graph, build_graph", "test_the_graph_of_a_result_has_nodes_and_edges",
            "also as Mermaid and SVG; a `formatter` is refused",
        ),
        served("forget", "test_forgetting_a_result_forgets_those_before_it"),
        served("revoke", "test_a_result_revokes_its_call"),
        served("revoke_by_stamped_headers", "test_running_tasks_are_revoked_by_their_stamps"),
        served("result_from_tuple, pickle", "test_results_are_made_from_tuples_and_pickles"),
        *_all(
            "test_a_set_of_results_answers_as_celerys_does", "add, remove, discard, update, clear",
            "remove of what is not there", "iteration, len, indexing, bool", "ready, waiting, successful, failed",
            "completed_count", "maybe_throw, maybe_reraise of a set", "get of a set", "propagate of a set",
            "timeout of a set", "an empty set", "groups in a group",
        ),
        *[
            better(
                name, f"test_a_set_of_results_answers_as_celerys_does[{name}]",
                "one subscription, linear in the members; returns the values also where there is a callback",
            )
            for name in ("join", "join_native")
        ],
        better(
            "iter_native", "test_a_set_of_results_answers_as_celerys_does[iter_native]",
            "a group among the results comes when it has ended, and not at once",
        ),
        better(
            "then of a set", "test_then_of_a_set_calls_back_when_all_are_there",
            "also for groups of eager results, which Celery never calls back",
        ),
        better("forget of a set", "test_forgetting_a_set_forgets_each", "in one trip"),
        served("revoke of a set", "test_revoking_a_set_revokes_each"),
        served("GroupResult: id, parent, children", "test_a_group_has_an_id_its_parent_and_its_children"),
        served("GroupResult.save, restore, delete", "test_a_group_is_saved_restored_and_deleted"),
        better(
            "save without a result store", "test_without_a_result_store_no_group_is_saved",
            "an error that says what to set",
        ),
        served("the result of a group", "test_the_result_of_a_sent_group_is_one"),
        *_all(
            "test_an_eager_result_answers_as_celerys_does", "EagerResult.ready", "EagerResult.get",
            "EagerResult.get(propagate=False)", "EagerResult.children", "EagerResult.forget",
            "EagerResult.supports_native_join", "EagerResult.as_tuple",
        ),
        served("EagerResult.revoke", "test_a_revoked_eager_result_is_revoked_from_then_on"),
        better(
            "EagerResult.get inside of a task", "test_an_eager_result_inside_of_a_task_is_there",
            "allowed: it does not wait",
        ),
        better("EagerResult.exists", "test_an_eager_result_exists", "True; Celery raises AttributeError"),
    ),
    *_section(
        "Routing, queues and priorities",
        *_all(
            "test_a_route_sends_a_task_to_its_queue", "dict, exact name", "dict, glob",
            "dict, compiled regex", "dict, name of a queue", "list of pairs", "list of routers", "function",
            "dotted path",
        ),
        served("the first answer wins", "test_the_first_router_with_an_answer_wins"),
        served("options beat routes", "test_options_of_the_call_beat_the_route"),
        served("what a router is given", "test_a_router_is_given_name_arguments_options_and_task"),
        served("Queue(exchange, routing_key)", "test_a_queue_has_its_exchange_and_key"),
        *[
            served(f"Exchange, {kind}", f"test_an_exchange_feeds_its_queues_as_its_type_says[{kind}]")
            for kind in ("direct", "topic", "fanout")
        ],
        served("Queue(bindings)", "test_a_queue_may_have_several_bindings"),
        served("Queue(alias)", "test_a_queue_is_found_by_its_alias"),
        *[
            served(f"Queue({name})", f"test_a_queue_is_declared_with_its_arguments[{name}]")
            for name in ("queue_arguments", "max_priority", "max_length", "expires", "message_ttl")
        ],
        served("Broadcast", "test_a_broadcast_reaches_every_worker"),
        served("worker_direct", "test_a_worker_has_a_queue_of_its_own_where_asked"),
        *_all("test_a_worker_serves_the_queues_it_is_told_to", "-Q", "-X", "all of task_queues"),
        served("task_create_missing_queues=False", "test_a_worker_refuses_a_queue_that_may_not_be_made"),
        served("task_create_missing_queues", "test_unknown_queues_are_made_as_the_settings_say"),
        *_all(
            "test_calls_without_an_address_go_to_the_default_queue",
            "task_default_queue", "task_default_exchange", "task_default_routing_key",
        ),
        served("priorities on Redis", "test_on_redis_0_is_served_first_in_celerys_steps"),
        served("priorities on RabbitMQ", "test_on_rabbitmq_the_highest_is_served_first"),
        better(
            "native delays on RabbitMQ", "test_on_rabbitmq_delays_are_celerys_in_the_broker",
            "Celery's queues and exchanges, for every queue and not only quorum ones on topic exchanges",
        ),
    ),
    *_section(
        "Serializers, compression, security",
        *_all("test_arguments_and_results_go_through_a_serializer_and_back", "json", "msgpack", "yaml"),
        served("pickle", "test_pickle_is_for_who_asks_for_it"),
        better(
            "pickle, not accepted", "test_pickle_is_not_read_where_it_is_not_accepted",
            "FAILURE, and kept with the dead letters; Celery drops it in silence",
        ),
        served("pickle as root", "test_a_worker_that_is_root_refuses_pickle"),
        served("auth", "test_signed_messages_are_run_and_altered_ones_are_not"),
        better(
            "an unknown serializer", "test_an_unknown_serializer_is_refused_with_those_there_are",
            "the error names those there are",
        ),
        better(
            "what JSON can't carry", "test_what_json_cannot_carry_is_refused_at_the_call",
            "the error names the argument",
        ),
        *[
            better(
                name, f"test_a_message_of_another_content_is_kept_and_not_run[{name}]",
                "FAILURE, and kept with the dead letters; Celery drops it in silence",
            )
            for name in ("accept_content", "accept_content, MIME type")
        ],
        served("result_accept_content", "test_a_result_of_another_content_is_not_read"),
        served("classes of stored errors", "test_a_stored_error_that_is_no_exception_class_is_not_made"),
        *_all(
            "test_a_body_may_be_compressed", "gzip", "zlib", "bzip2", "bzip", "lzma", "xz", "zstd",
            "zstandard", "brotli",
        ),
        better(
            "a body that unpacks to far too much",
            "test_a_body_that_unpacks_to_far_too_much_is_kept_and_not_run", "kept, not run; Celery unpacks it",
        ),
    ),
    *_section(
        "Pools, limits and recycling",
        served("-P prefork", "test_prefork_runs_tasks_in_children"),
        served("--pool-start-method spawn", "test_spawned_children_are_fresh_interpreters"),
        served("-P solo", "test_solo_runs_tasks_in_the_workers_own_process"),
        served("-P threads", "test_threads_run_tasks_side_by_side_in_one_process"),
        better("-P asyncio", "test_asyncio_runs_coroutines_side_by_side", "not in Celery"),
        *[
            better(
                f"async def in {pool}", f"test_an_async_def_task_runs_in_every_pool[{pool}]",
                "not in Celery: there the result is a coroutine that can't be carried",
            )
            for pool in ("prefork", "solo", "threads")
        ],
        served("-P processes", "test_processes_is_another_name_for_prefork"),
        *[
            refused(
                f"-P {name}", f"test_a_pool_that_is_not_there_is_refused_with_those_that_are[{name}]",
                "asyncio or threads do what it is for" if name != "custom" else "there is no protocol for one",
            )
            for name in ("gevent", "eventlet", "custom")
        ],
        *[
            served(f"-c {name}", f"test_the_concurrency_is_the_number_of_children[{name}]")
            for name in ("a number", "auto")
        ],
        served("--soft-time-limit", "test_a_soft_limit_raises_in_the_task"),
        served("--time-limit", "test_a_hard_limit_ends_the_child_and_fails_the_task"),
        better("limits in asyncio", "test_a_limit_cancels_a_coroutine", "the coroutine is cancelled"),
        *[
            refused(
                name, f"test_a_limit_that_a_pool_cannot_enforce_is_refused_at_the_start[{name}]",
                "the worker does not start; Celery starts and does not enforce it",
            )
            for name in ("time_limit in solo", "time_limit in threads", "soft_time_limit in threads")
        ],
        better(
            "--max-tasks-per-child", "test_a_child_is_replaced_after_so_many_tasks",
            "the next child is ready before the old one leaves",
        ),
        better(
            "--max-memory-per-child", "test_a_child_that_has_grown_too_large_is_replaced",
            "by what it uses now, not its peak; a fresh child that is over the limit is kept, with a warning",
        ),
        better(
            "--autoscale", "test_autoscale_adds_children_while_tasks_wait",
            "by what waits in the queues; a busy child is never ended",
        ),
    ),
    *_section(
        "Revocation",
        better(
            "revoke", "test_a_revoked_call_is_not_run",
            "delayed calls too, and for 30 days",
        ),
        better(
            "after a restart", "test_a_revoked_call_is_not_run_by_a_worker_that_starts_later",
            "kept in the broker for 30 days; in Celery in the memory of running workers",
        ),
        *[
            served(f"terminate=True, {pool}", f"test_terminate_ends_a_running_task[{pool}]")
            if pool == "prefork"
            else better(
                f"terminate=True, {pool}", f"test_terminate_ends_a_running_task[{pool}]",
                "a coroutine is cancelled; not in Celery",
            )
            for pool in ("prefork", "asyncio", "solo")
        ],
        served("signal=", "test_terminate_takes_a_signal"),
        better("an unknown signal", "test_an_unknown_signal_is_refused", "at the call, with those there are"),
        served("several ids", "test_several_calls_are_revoked_by_their_ids"),
    ),
    *_section(
        "Signals",
        better(
            "before_task_publish", "test_before_task_publish_has_celerys_keywords",
            "once for each message, also of `apply_many`",
        ),
        served("before_task_publish: changes are sent", "test_before_task_publish_may_change_what_is_sent"),
        served("after_task_publish", "test_after_task_publish_has_celerys_keywords"),
        served("task_sent", "test_task_sent_follows_with_its_own_keywords"),
        better(
            "before_, after_task_publish in a worker", "test_what_a_worker_sends_is_announced_too",
            "announced when the attempt ends; sent in one step with its outcome",
        ),
        better(
            "task_received", "test_task_received_comes_before_the_run",
            "when a child is about to run it, in the child; in Celery when the worker fetches it",
        ),
        served("task_prerun", "test_task_prerun_is_sent_by_the_task"),
        *[
            served(f"task_postrun, {state}", f"test_task_postrun_tells_state_and_value[{state}]")
            for state in ("SUCCESS", "FAILURE", "RETRY", "REJECTED")
        ],
        served("task_success", "test_task_success_tells_value_and_seconds"),
        served("task_retry", "test_task_retry_tells_request_reason_and_traceback"),
        *[
            served(f"task_failure, {what}", f"test_task_failure_tells_exception_and_traceback[{what}]")
            for what in ("of a task that raises", "of a task that rejects its message")
        ],
        better(
            "task_internal_error", "test_task_internal_error_tells_of_a_handler_that_failed",
            "the task's own end stays as it was",
        ),
        *[
            served(f"task_revoked, {what}", f"test_task_revoked_tells_why[{what}]")
            for what in ("expired", "revoked")
        ],
        served("task_rejected", "test_task_rejected_tells_of_a_message_that_is_no_task"),
        served("task_unknown", "test_task_unknown_tells_the_name_and_the_id"),
        *_all(
            _LIFE, "import_modules", "celeryd_init", "worker_init", "after_setup_logger",
            "after_setup_task_logger", "celeryd_after_setup", "worker_process_init", "worker_ready", "worker_shutting_down", "worker_process_shutdown",
            "worker_shutdown",
        ),
        better(
            "worker_before_create_process", "test_worker_before_create_process_comes_before_each_process",
            "also before the process that looks after the children, which runs no tasks",
        ),
        served("their order", "test_the_signals_of_a_workers_life_come_in_celerys_order"),
        served("celeryd_init: changes of conf count", "test_celeryd_init_may_change_the_settings_of_a_worker"),
        served("worker_shutting_down: sig, how, exitcode", "test_shutting_down_tells_the_signal_and_how"),
        served("worker_process_shutdown: pid, exitcode", "test_the_end_of_a_child_tells_its_pid_and_exitcode"),
        better("heartbeat_sent", "test_heartbeat_sent_comes_regularly", "only while the broker answers"),
        served("setup_logging", "test_who_listens_to_setup_logging_sets_it_up"),
        better(
            "user_preload_options", "test_user_preload_options_come_with_the_command",
            "with all options of the command; Celery sends it only where the app has options of its own",
        ),
        *[
            served(name, f"test_beat_tells_that_it_begins[{name}]")
            for name in ("beat_init", "beat_embedded_init")
        ],
        *[
            refused(
                name, f"test_signals_of_a_pool_that_there_is_not_can_be_connected[{name}]",
                "there is no eventlet pool: connecting is harmless, and it is never sent",
            )
            for name in (
                "eventlet_pool_started", "eventlet_pool_preshutdown", "eventlet_pool_postshutdown",
                "eventlet_pool_apply",
            )
        ],
        *[
            served(f"app.{name}", f"test_an_app_tells_of_its_configuration[{name}]")
            for name in ("on_configure", "on_after_configure")
        ],
        served("app.on_after_finalize", "test_an_app_tells_when_its_tasks_are_settled"),
        served("app.on_after_fork", "test_an_app_tells_a_forked_process"),
        served("connect(sender=)", "test_a_sender_narrows_what_is_heard"),
        served("connect(weak=)", "test_a_weak_receiver_goes_with_its_owner_and_another_stays"),
        served("connect(dispatch_uid=)", "test_a_dispatch_uid_is_connected_once"),
        served("connect(retry=)", "test_retry_calls_a_failing_receiver_again"),
        served("a receiver that fails", "test_a_failing_receiver_is_logged_and_changes_nothing"),
        better("nobody listens", "test_an_unused_signal_is_not_even_sent", "costs one look at a tuple"),
    ),
    *_section(
        "Periodic tasks",
        *_all("test_a_field_of_an_entry_is_in_what_is_sent", "task", "args", "kwargs", "options"),
        *_all(
            "test_an_entry_runs_by_its_schedule",
            "schedule (seconds)", "schedule (timedelta)", "schedule", "crontab", "crontab.from_string",
        ),
        served("solar", "test_an_entry_runs_by_the_sun", "with `minicelery[solar]`"),
        served("relative", "test_a_relative_entry_runs_at_round_times"),
        served("BeatLazyFunc", "test_a_lazy_argument_is_computed_at_each_run"),
        served("the first run of an entry", "test_a_first_run_is_never_missed"),
        *[
            served(f"add_periodic_task: {case}", f"test_add_periodic_task_takes[{case}]")
            for case in ("a signature", "a task with args and kwargs", "options")
        ],
        served("add_periodic_task without name=", "test_an_entry_without_a_name_has_its_signatures_text"),
        *[
            served(f"add_periodic_task in app.{case}", f"test_entries_are_added_when_the_app_is[{case}]")
            for case in ("on_after_configure", "on_after_finalize")
        ],
        *[
            served(
                f"on_after_configure connected after conf.{case}",
                f"test_entries_added_after_the_settings_were_used_count[{case}]",
            )
            for case in ("timezone", "update", "beat_schedule")
        ],
        better(
            "beat_cron_starting_deadline", "test_the_starting_deadline_skips_what_was_missed_for_longer",
            "0, with which Celery sends nothing, is refused",
        ),
        served("beat_max_loop_interval", "test_the_longest_sleep_is_kept"),
        served("last_run_at, total_run_count", "test_last_runs_are_in_utc_and_aware"),
        better(
            "beat -s, --schedule", "test_an_option_of_the_command_is_known[--schedule]",
            "not needed: last runs are in the broker",
        ),
        better(
            "beat -S, --scheduler", "test_an_option_of_the_command_is_known[--scheduler]",
            "a `minicelery.beat.Scheduler`: two methods",
        ),
        served("beat --max-interval", "test_an_option_of_the_command_is_known[--max-interval]"),
        refused(
            "beat --detach", "test_an_option_of_the_command_is_known[--detach]",
            "a service manager does it better",
        ),
        served("worker -B, --beat", "test_an_option_of_the_command_is_known[--beat of a worker]"),
    ),
    *_section(
        "Remote control",
        *_all(
            "test_a_worker_tells_who_inspects_it", "ping", "active", "query_task", "registered",
            "registered(attributes)", "stats", "active_queues", "conf", "revoked", "report", "clock", "memsample",
            "hello",
        ),
        *[
            better(
                name, f"test_what_waits_is_in_the_broker_and_not_in_a_worker[{name}]",
                "an empty list: what waits, also for its time, is in the broker",
            )
            for name in ("reserved", "scheduled")
        ],
        *_all("test_who_is_asked_can_be_chosen", "limit", "pattern", "matcher"),
        served("callback", "test_a_callback_gets_each_reply"),
        served("nobody answers", "test_nobody_answering_is_none"),
        *[
            refused(
                name, f"test_what_looks_into_a_workers_memory_is_refused[{name}]", "a debugger does it better",
            )
            for name in ("memdump", "objgraph")
        ],
        refused("election", "test_nobody_is_elected", "minicelery's workers elect nobody"),
        *_all(
            "test_a_worker_obeys_who_controls_it", "add_consumer, cancel_consumer", "pool_grow, pool_shrink",
            "enable_events, disable_events", "time_limit", "terminate", "autoscale", "pool_restart",
        ),
        better(
            "rate_limit", "test_a_worker_obeys_who_controls_it[rate_limit]",
            "the rate holds for all workers together",
        ),
        served("shutdown", "test_shutdown_stops_a_worker"),
        served("an unknown task or command", "test_what_is_unknown_to_a_worker_is_an_error_in_its_reply"),
    ),
    *_section(
        "Events",
        served("app.events.Receiver, State", "test_a_receiver_hears_of_a_task_from_end_to_end"),
        served("app.events.default_dispatcher", "test_a_dispatcher_sends_events_of_ones_own"),
        served("Event", "test_an_event_has_a_type_and_a_time"),
    ),
]  # fmt: skip
