"""The table of settings: every one of Celery's, and those of minicelery's own."""

from __future__ import annotations

from typing import Any

from minicelery.settings import kinds
from minicelery.settings.kinds import Kind, Setting, choice, optional, seconds, whole
from minicelery.settings.not_served import LATER, NOT_SERVED

__all__ = ["GROUPS", "OWN", "TABLE", "Setting", "as_markdown"]

GROUPS = (
    "task", "worker", "broker", "result", "redis", "beat", "event", "control", "security", "database",
    "arangodb", "azureblockblob", "cache", "cassandra", "cosmosdbsql", "couchbase", "elasticsearch", "gcs",
    "mongodb", "s3",
)  # fmt: skip
"""The first word of the names that belong together; the rest is general."""

LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
PUBLISH_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}
DAY = 24 * 60 * 60.0

AMQP = "RabbitMQ comes with a later version"
COUNTED = "nobody polls: the store counts the parts, and the last one has the body sent"
AT_ONCE = "a dead child is noticed, settled and replaced at once"
IN_URL = "name the server in result_backend"
LOGGING = "handlers that the program has set up are left alone"
RECONNECTS = "connections are opened anew, with growing pauses, until they hold"
ENGINE = "this engine has no such part"


def _rate(value: Any) -> Any:
    # Imported here: the modules of settings stay cheap to import.
    from minicelery.limits import interval_of

    try:
        interval_of(value, "")
    except ValueError:
        raise ValueError from None  # the kind says what is expected
    return value


RATE = Kind("a rate such as '10/m', '3/s', or a number per second", _rate, str)

_GENERAL = (
    Setting("accept_content", ("json",), kinds.CONTENT, "", "what messages may be written in"),
    Setting(
        "result_accept_content", None, optional(kinds.CONTENT), "",
        "what results may be written in; None: as accept_content",
    ),
    Setting("enable_utc", True, kinds.BOOLEAN, "", "whether times without a timezone set are in UTC"),
    Setting("timezone", None, optional(kinds.ZONE), "", "the app's time zone; None: UTC"),
    Setting("imports", (), kinds.MODULES, "", "modules a worker imports to find tasks"),
    Setting("include", (), kinds.MODULES, "", "more such modules"),
)  # fmt: skip

_TASK = (
    Setting("task_acks_late", False, kinds.BOOLEAN, "", "acknowledge after the run, not before"),
    Setting(
        "task_acks_on_failure_or_timeout", True, kinds.BOOLEAN, "",
        "with late acknowledgement, acknowledge failed runs too",
    ),
    Setting("task_acks_on_failure", None, optional(kinds.BOOLEAN), "", "the same, for exceptions alone"),
    Setting("task_acks_on_timeout", None, optional(kinds.BOOLEAN), "", "the same, for time limits alone"),
    Setting("task_reject_on_worker_lost", None, optional(kinds.BOOLEAN), "", "run again if its process dies"),
    Setting("task_retry_on_worker_lost", False, kinds.BOOLEAN, "", "count the process's death as a retry"),
    Setting("task_always_eager", False, kinds.BOOLEAN, "", "run tasks at once, in the caller"),
    Setting("task_eager_propagates", False, kinds.BOOLEAN, "", "let exceptions of eager tasks through"),
    Setting("task_store_eager_result", False, kinds.BOOLEAN, "", "store the results of eager tasks"),
    Setting("task_annotations", None, kinds.ANYTHING, "", "attributes to change on tasks, by their names"),
    Setting("task_compression", None, optional(kinds.COMPRESSION), "", "how message bodies are compressed"),
    Setting("task_create_missing_queues", True, kinds.BOOLEAN, "", "queues not in task_queues: on first use"),
    Setting("task_create_missing_queue_type", "classic", kinds.QUEUE_TYPE, "", "of these, on RabbitMQ"),
    Setting(
        "task_create_missing_queue_exchange_type", None, optional(kinds.EXCHANGE_TYPE), "",
        "of their exchanges; None: direct",
    ),
    Setting("task_default_queue", "celery", kinds.TEXT, "", "where tasks go that name no queue"),
    Setting("task_default_queue_type", "classic", kinds.QUEUE_TYPE, "", "of that queue, on RabbitMQ"),
    Setting(
        "task_default_exchange", None, optional(kinds.EXCHANGE), "",
        "of queues that name none; None: as the default queue",
    ),
    Setting(
        "task_default_exchange_type", "direct", kinds.EXCHANGE_TYPE, "",
        "how the default exchange spreads messages",
    ),
    Setting(
        "task_default_routing_key", None, optional(kinds.TEXT), "",
        "of queues that name none; None: as the default queue",
    ),
    Setting("task_default_delivery_mode", 2, kinds.DELIVERY_MODE, "", "2 or 'persistent', 1 or 'transient'"),
    Setting("task_default_rate_limit", None, optional(RATE), "", "of tasks that have none, each its own"),
    Setting("task_default_priority", None, optional(whole(0, 255)), "", "of tasks that name none"),
    Setting(
        "task_queue_max_priority", None, optional(whole(0, 255)), "",
        "x-max-priority of queues without their own, on RabbitMQ",
    ),
    Setting("task_inherit_parent_priority", False, kinds.BOOLEAN, "", "a task's tasks get its priority"),
    Setting("task_ignore_result", False, kinds.BOOLEAN, "", "store no results"),
    Setting("task_store_errors_even_if_ignored", False, kinds.BOOLEAN, "", "store failures all the same"),
    Setting("task_protocol", 2, choice(2, later=(1,)), "", "version of the message format"),
    Setting("task_publish_retry", True, kinds.BOOLEAN, "", "try again when the broker is away"),
    Setting("task_publish_retry_policy", PUBLISH_RETRY_POLICY, kinds.MAPPING, "", "how often, the pauses"),
    Setting("task_queues", None, kinds.QUEUES, "", "the queues a worker serves; None: the default queue"),
    Setting("task_routes", None, kinds.ROUTES, "", "which task goes to which queue"),
    Setting("task_remote_tracebacks", False, kinds.BOOLEAN, "", "real tracebacks in the caller", LATER),
    Setting("task_repr_maxlevels", 3, kinds.COUNT, "levels", "depth of the arguments shown", LATER),
    Setting("task_send_sent_event", False, kinds.BOOLEAN, "", "whether callers send the event task-sent"),
    Setting("task_serializer", "json", kinds.SERIALIZER, "", "what message bodies are written in"),
    Setting("task_soft_time_limit", None, optional(kinds.SECONDS), "s", "raise SoftTimeLimitExceeded then"),
    Setting("task_time_limit", None, optional(kinds.SECONDS), "s", "end the run then"),
    Setting("task_track_started", False, kinds.BOOLEAN, "", "store the state STARTED"),
    Setting("task_allow_error_cb_on_chord_header", False, kinds.BOOLEAN, "", "errbacks of a chord for its parts too"),
)  # fmt: skip

_WORKER = (
    Setting("worker_concurrency", None, optional(kinds.CONCURRENCY), "children", "None: one per CPU"),
    Setting(
        "worker_pool", "prefork",
        choice(
            "prefork", "threads", "asyncio", "solo", later=("gevent", "eventlet", "custom"),
            aliases={"processes": "prefork"},
        ),
        "", "how tasks run side by side",
    ),
    Setting("worker_pool_start_method", "fork", choice("fork", "spawn"), "", "of children"),
    Setting("worker_prefetch_multiplier", 4, kinds.COUNT, "messages", "fetched per child; 0: many"),
    Setting("worker_disable_prefetch", False, kinds.BOOLEAN, "", "fetch only for free children", LATER),
    Setting("worker_eta_task_limit", None, optional(kinds.COUNT), "messages", "delayed ones held", ENGINE),
    Setting("worker_enable_prefetch_count_reduction", True, kinds.BOOLEAN, "", "after a reconnect", ENGINE),
    Setting("worker_detect_quorum_queues", True, kinds.BOOLEAN, "", "limit the prefetch for each", ENGINE),
    Setting("worker_max_tasks_per_child", None, optional(kinds.COUNT), "tasks", "then a child is replaced"),
    Setting("worker_max_memory_per_child", None, optional(kinds.COUNT), "KiB", "then a child is replaced"),
    Setting("worker_soft_shutdown_timeout", 0.0, kinds.SECONDS, "s", "for tasks to end", LATER),
    Setting("worker_enable_soft_shutdown_on_idle", False, kinds.BOOLEAN, "", "wait also when idle", LATER),
    Setting(
        "worker_cancel_long_running_tasks_on_connection_loss", False, kinds.BOOLEAN, "",
        "end late-acknowledged runs then", ENGINE,
    ),
    Setting("worker_deduplicate_successful_tasks", False, kinds.BOOLEAN, "", "skip what succeeded", LATER),
    Setting("worker_state_db", None, optional(kinds.PATH), "", "revoked ids", "the broker keeps them"),
    Setting("worker_send_task_events", False, kinds.BOOLEAN, "", "whether workers send events of tasks"),
    Setting("worker_enable_remote_control", True, kinds.BOOLEAN, "", "answer inspect and control"),
    Setting("worker_disable_rate_limits", False, kinds.BOOLEAN, "", "start tasks at any rate"),
    Setting("worker_direct", False, kinds.BOOLEAN, "", "a queue for each worker, <node>.dq2"),
    Setting("worker_lost_wait", 10.0, kinds.SECONDS, "s", "before a dead child's task counts as lost", AT_ONCE),
    Setting("worker_proc_alive_timeout", 4.0, kinds.SECONDS, "s", "a child may take to start", AT_ONCE),
    Setting("worker_pool_putlocks", True, kinds.BOOLEAN, "", "hold back tasks for busy children", ENGINE),
    Setting("worker_pool_restarts", False, kinds.BOOLEAN, "", "allow pool_restart"),
    Setting("worker_hijack_root_logger", True, kinds.BOOLEAN, "", "replace the root logger's handlers", LOGGING),
    Setting("worker_redirect_stdouts", True, kinds.BOOLEAN, "", "log what tasks print"),
    Setting("worker_redirect_stdouts_level", "WARNING", kinds.LOG_LEVEL, "", "at this level"),
    Setting("worker_log_format", LOG_FORMAT, kinds.TEXT, "", "log lines of the worker; json: an object a line"),
    Setting("worker_task_log_format", TASK_LOG_FORMAT, kinds.TEXT, "", "log lines of tasks; json: an object a line"),
    Setting("worker_log_datefmt", None, optional(kinds.TEXT), "", "the time in them, for strftime"),
    Setting("worker_task_log_datefmt", None, optional(kinds.TEXT), "", "the time in those of tasks"),
    Setting("worker_log_color", None, optional(kinds.BOOLEAN), "", "None: if it is a terminal"),
    Setting("worker_timer", None, optional(kinds.TEXT), "", "class of the timer", ENGINE),
    Setting("worker_timer_precision", 1.0, kinds.SECONDS, "s", "longest sleep of the timer", ENGINE),
    Setting("worker_agent", None, optional(kinds.TEXT), "", "class of the agent", ENGINE),
    Setting("worker_autoscaler", "celery.worker.autoscale:Autoscaler", kinds.TEXT, "", "its class", ENGINE),
    Setting("worker_consumer", "celery.worker.consumer:Consumer", kinds.TEXT, "", "its class", ENGINE),
)  # fmt: skip

_BROKER = (
    Setting("broker_url", None, kinds.BROKER_URL, "", "the server of the queues"),
    Setting("broker_read_url", None, kinds.BROKER_URL, "", "for workers; must equal broker_url"),
    Setting("broker_write_url", None, kinds.BROKER_URL, "", "for senders; must equal broker_url"),
    Setting("broker_transport_options", {}, kinds.MAPPING, "", "e.g. global_keyprefix"),
    Setting("broker_connection_timeout", 4, optional(kinds.SECONDS), "s", "to connect"),
    Setting("broker_connection_retry", True, kinds.BOOLEAN, "", "connect again when the connection is lost", RECONNECTS),
    Setting("broker_connection_retry_on_startup", None, optional(kinds.BOOLEAN), "", "None: as above", RECONNECTS),
    Setting("broker_connection_max_retries", 100, optional(kinds.COUNT), "times", "0 or None: for ever", RECONNECTS),
    Setting("broker_channel_error_retry", False, kinds.BOOLEAN, "", "connect again then", RECONNECTS),
    Setting("broker_failover_strategy", None, optional(choice("round-robin", "shuffle")), "", "which server is next"),
    Setting("broker_heartbeat", 120, optional(kinds.SECONDS), "s", "between signs of life; 0: none"),
    Setting("broker_heartbeat_checkrate", 3.0, kinds.number(0), "", "checks per heartbeat", ENGINE),
    Setting("broker_login_method", None, optional(kinds.TEXT), "", "such as 'PLAIN'"),
    Setting("broker_native_delayed_delivery_queue_type", "quorum", choice("quorum", "classic"), "", "of the delays in RabbitMQ"),
    Setting("broker_pool_limit", 10, optional(kinds.COUNT), "connections", "kept open; 0: no limit"),
    Setting("broker_pool_acquire_timeout", None, optional(kinds.SECONDS), "s", "to wait for one", LATER),
    Setting("broker_use_ssl", False, optional(kinds.TLS), "", "speak TLS to the broker"),
)  # fmt: skip

_RESULT = (
    Setting("result_backend", None, kinds.STORE_URL, "", "where results are stored; None: nowhere"),
    Setting("result_expires", DAY, optional(kinds.DURATION), "s", "they stay; 0 or None: for ever"),
    Setting("result_failure_expires", None, optional(kinds.DURATION), "s", "failures; None: as the others"),
    Setting("result_chord_expires", None, optional(kinds.DURATION), "s", "what chords store; None: as result_chord_deadline"),
    Setting("result_serializer", "json", kinds.SERIALIZER, "", "what results are written in"),
    Setting("result_compression", None, optional(kinds.COMPRESSION), "", "how they are compressed; not with rpc://"),
    Setting("result_extended", False, kinds.BOOLEAN, "", "store name, arguments, worker and queue too"),
    Setting("result_persistent", None, optional(kinds.BOOLEAN), "", "rpc results survive a restart"),
    Setting("result_cache_max", -1, optional(whole(-1)), "results", "cached by the caller", ENGINE),
    Setting(
        "cache_backend", None, optional(kinds.TEXT), "",
        "with result_backend='django-cache': its name in Django's CACHES; None: default",
    ),
    Setting("result_backend_transport_options", {}, kinds.MAPPING, "", "e.g. global_keyprefix"),
    Setting("result_backend_always_retry", False, kinds.BOOLEAN, "", "try again when the store is away", RECONNECTS),
    Setting("result_backend_max_retries", float("inf"), kinds.number(0), "times", "tried again", RECONNECTS),
    Setting(
        "result_backend_base_sleep_between_retries_ms", 10, kinds.COUNT, "ms", "the first pause", RECONNECTS
    ),
    Setting(
        "result_backend_max_sleep_between_retries_ms", 10000, kinds.COUNT, "ms", "the longest", RECONNECTS
    ),
    Setting("result_chord_retry_interval", 1.0, kinds.SECONDS, "s", "between looks at a chord", COUNTED),
    Setting("result_chord_join_timeout", 3.0, kinds.SECONDS, "s", "to read its parts", COUNTED),
)  # fmt: skip

_REDIS = (
    Setting("redis_backend_use_ssl", None, optional(kinds.TLS), "", "speak TLS to the store"),
    Setting("redis_host", None, optional(kinds.TEXT), "", "where result_backend names none", IN_URL),
    Setting("redis_port", None, optional(whole(1, 65535)), "", "where result_backend names none", IN_URL),
    Setting("redis_db", None, optional(kinds.COUNT), "", "where result_backend names none", IN_URL),
    Setting("redis_username", None, optional(kinds.PLAIN_TEXT), "", "where result_backend names none"),
    Setting("redis_password", None, optional(kinds.PLAIN_TEXT), "", "where result_backend names none"),
    Setting("redis_max_connections", None, optional(whole(1)), "connections", "at most"),
    Setting("redis_socket_timeout", 120.0, optional(kinds.SECONDS), "s", "to wait for an answer"),
    Setting("redis_socket_connect_timeout", None, optional(kinds.SECONDS), "s", "to connect"),
    Setting("redis_retry_on_timeout", False, kinds.BOOLEAN, "", "ask again after that", RECONNECTS),
    Setting("redis_socket_keepalive", False, kinds.BOOLEAN, "", "TCP keep-alive; always on"),
    Setting("redis_client_name", None, optional(kinds.TEXT), "", "the name in CLIENT LIST", LATER),
    Setting("redis_backend_health_check_interval", None, optional(kinds.SECONDS), "s", "ping", RECONNECTS),
    Setting("redis_backend_credential_provider", None, kinds.ANYTHING, "", "asked for passwords", LATER),
)  # fmt: skip

_BEAT = (
    Setting("beat_schedule", {}, kinds.MAPPING, "", "what to send when"),
    Setting("beat_scheduler", "celery.beat:PersistentScheduler", kinds.TEXT, "", "the class that says so"),
    Setting("beat_max_loop_interval", 0, kinds.SECONDS, "s", "longest sleep; 0: as long as may be"),
    Setting(
        "beat_cron_starting_deadline",
        None,
        optional(kinds.seconds(above=0)),
        "s",
        "skip runs of crontabs missed longer ago",
    ),
)

_EVENT = (
    Setting("event_exchange", "celeryev", kinds.TEXT, "", "where events go"),
    Setting("event_queue_prefix", "celeryev", kinds.TEXT, "", "how the names of receivers' queues begin"),
    Setting("event_queue_expires", 60.0, optional(kinds.SECONDS), "s", "RabbitMQ: a receiver's queue outlives it"),
    Setting("event_queue_ttl", 5.0, optional(kinds.SECONDS), "s", "RabbitMQ: an event stays in a receiver's queue"),
)  # fmt: skip

OWN = (
    Setting(
        "result_chord_deadline", None, optional(kinds.DURATION), "s",
        "a chord whose parts have not ended then fails; None: result_chord_expires, or else at least a day; 0: never",
    ),
    Setting(
        "broker_delays", "auto", choice("auto", "native", "celery"), "",
        "Redis: delayed tasks wait in a set, in the list as Celery's do, or (auto) in the set if minicelery serves it",
    ),
    Setting(
        "db_reuse_max", None, optional(kinds.COUNT), "tasks",
        "in Django: a connection to a database is kept for; None: as CONN_MAX_AGE says",
    ),
    Setting("strict_config", False, kinds.BOOLEAN, "", "unknown settings are errors, not warnings"),
    Setting("task_delivery_cap", 3, whole(1), "runs", "that may die under a message before it is given up"),
    Setting(
        "task_limits_url", None, kinds.BROKER_URL, "",
        "redis:// or sqlite:///: where the limits of tasks are kept; None: the broker",
    ),
    Setting("task_track_sent", False, kinds.BOOLEAN, "", "callers store PENDING: `known` tells what was sent"),
    Setting("task_publish_deadline", 5.0, seconds(above=0), "s", "all attempts to send may take in total"),
    Setting(
        "worker_processes", None, optional(whole(1)), "children",
        "that the concurrency of the threads and asyncio pools is spread over; None: 1, or one per CPU for 100 tasks each",
    ),
    Setting("worker_lease", 12.0, seconds(above=0), "s", "a silent worker keeps its messages"),
    Setting(
        "worker_unregistered_task", "discard", choice("discard", "requeue", "dead-letter"), "",
        "what becomes of a message for a task the worker does not have",
    ),
)  # fmt: skip
"""The settings that Celery does not have."""

_CONTROL = (
    Setting("control_exchange", "celery", kinds.TEXT, "", "first word of the names of what requests go through"),
    Setting("control_queue_ttl", 300.0, optional(kinds.SECONDS), "s", "requests stay, on RabbitMQ"),
    Setting("control_queue_expires", 10.0, optional(kinds.SECONDS), "s", "unused queues stay, on RabbitMQ"),
)  # fmt: skip

_SECURITY = (
    Setting("security_key", None, optional(kinds.PATH), "", "file of the private key that signs messages, in PEM form"),
    Setting("security_key_password", None, optional(kinds.SECRET), "", "of that key"),
    Setting("security_certificate", None, optional(kinds.PATH), "", "file of its certificate"),
    Setting("security_cert_store", None, optional(kinds.PATH), "", "folder of the certificates that are trusted, or a pattern"),
    Setting(
        "security_digest", "sha256",
        choice("sha256", "sha384", "sha512", "sha224", "sha3_256", "sha3_384", "sha3_512"), "",
        "what signatures are made with; the same wherever messages are signed or read",
    ),
)  # fmt: skip

TABLE: dict[str, Setting] = {
    row.name: row
    for rows in (
        _GENERAL,
        _TASK,
        _WORKER,
        _BROKER,
        _RESULT,
        _REDIS,
        _BEAT,
        _CONTROL,
        _EVENT,
        _SECURITY,
        NOT_SERVED,
        OWN,
    )
    for row in rows
}
"""Every setting by its name."""


def as_markdown() -> str:
    """The table of settings as Markdown, a section for each group."""
    groups: dict[str, list[Setting]] = {"general": [], **{group: [] for group in GROUPS}}
    for row in TABLE.values():
        first = row.name.partition("_")[0]
        groups["general" if row.name == "result_accept_content" or first not in groups else first].append(row)
    return "\n".join(_section(group, rows) for group, rows in groups.items())


def _section(group: str, rows: list[Setting]) -> str:
    head = f"## {group}\n\n| setting | default | value | unit | served | meaning |\n"
    return head + "| --- | --- | --- | --- | --- | --- |\n" + "".join(map(_line, rows))


def _line(row: Setting) -> str:
    served = "yes" if row.served is True else f"{'refused' if row.refused else 'no'}: {row.served}"
    cells = (f"`{row.name}`", f"`{row.default!r}`", row.kind.expected, row.unit, served, row.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
