"""Settings that are known but have no effect in this version, or stand for what there never will be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicelery.settings import kinds
from minicelery.settings.kinds import Setting, optional

LATER = "it comes with a later version"
IN_BROKER = "beat keeps its last runs in the broker"
NO_BEAT_CONTROL = "beat answers no requests; the broker knows which beat leads"
OWN_QUEUES = "each who listens has a queue of its own, which goes with it"
NEWS = "events are for those who listen at the moment: each receiver has a queue of its own"
JSON = "events are JSON, which everybody reads"
SQL = "results in an SQL database come with a later version"
IN_URL = "say it in broker_url: scheme://user:password@host:port/vhost"
NO_EXCHANGE = "results go to the store of result_backend, not to an exchange"

_BEAT = (
    Setting("beat_schedule_filename", "celerybeat-schedule", kinds.PATH, "", "file of last runs", IN_BROKER),
    Setting("beat_sync_every", 0, kinds.COUNT, "tasks", "between two writes of that file", IN_BROKER),
    Setting("beat_enable_remote_control", False, kinds.BOOLEAN, "", "answer ping", NO_BEAT_CONTROL),
    Setting(
        "beat_remote_control_max_tick_age",
        None,
        optional(kinds.SECONDS),
        "s",
        "then stay silent",
        NO_BEAT_CONTROL,
    ),
)

_EVENT = (
    Setting("event_queue_exclusive", True, kinds.BOOLEAN, "", "one receiver for each queue", NEWS),
    Setting("event_queue_durable", False, kinds.BOOLEAN, "", "queues survive a restart", NEWS),
    Setting("event_serializer", "json", kinds.SERIALIZER, "", "what events are written in", JSON),
)

_CONTROL = (
    Setting("control_queue_exclusive", True, kinds.BOOLEAN, "", "one worker for each queue", OWN_QUEUES),
    Setting("control_queue_durable", False, kinds.BOOLEAN, "", "queues survive a restart", OWN_QUEUES),
)

_DATABASE = (
    Setting("database_url", None, optional(kinds.TEXT), "", "of the results", SQL),
    Setting(
        "database_engine_options",
        {"pool_pre_ping": True, "pool_recycle": 3600},
        optional(kinds.MAPPING),
        "",
        "for the engine",
        SQL,
    ),
    Setting("database_engine_callback", None, kinds.ANYTHING, "", "called with the engine", SQL),
    Setting("database_short_lived_sessions", False, kinds.BOOLEAN, "", "a session for each result", SQL),
    Setting("database_table_schemas", None, optional(kinds.MAPPING), "", "of the tables", SQL),
    Setting("database_table_names", None, optional(kinds.MAPPING), "", "of the tables", SQL),
    Setting("database_create_tables_at_setup", True, kinds.BOOLEAN, "", "make them at the start", SQL),
)

_OBSOLETE = (
    Setting("broker_transport", None, optional(kinds.TEXT), "", "kind of broker", IN_URL, True),
    Setting("broker_host", None, optional(kinds.TEXT), "", "part of broker_url", IN_URL, True),
    Setting("broker_port", None, kinds.ANYTHING, "", "part of broker_url", IN_URL, True),
    Setting("broker_user", None, optional(kinds.PLAIN_TEXT), "", "part of broker_url", IN_URL, True),
    Setting("broker_password", None, optional(kinds.PLAIN_TEXT), "", "part of broker_url", IN_URL, True),
    Setting("broker_vhost", None, optional(kinds.PLAIN_TEXT), "", "part of broker_url", IN_URL, True),
    Setting("result_exchange", "celeryresults", kinds.TEXT, "", "of the amqp backend", NO_EXCHANGE, True),
    Setting("result_exchange_type", "direct", kinds.TEXT, "", "of the amqp backend", NO_EXCHANGE, True),
)

_STORES: Mapping[str, Mapping[str, Any]] = {
    "arangodb": {"backend_settings": None},
    "azureblockblob": {
        "container_name": "celery",
        "retry_initial_backoff_sec": 2,
        "retry_increment_base": 2,
        "retry_max_attempts": 3,
        "base_path": "",
        "connection_timeout": 20,
        "read_timeout": 120,
    },
    "cache": {"backend_options": {}},
    "cassandra": {
        **dict.fromkeys(("servers", "keyspace", "table", "port", "entry_ttl", "read_consistency")),
        **dict.fromkeys(("write_consistency", "auth_provider", "auth_kwargs", "bundle_path")),
        "options": {},
    },
    "cosmosdbsql": {
        "database_name": "celerydb",
        "collection_name": "celerycol",
        "consistency_level": "Session",
        "max_retry_attempts": 9,
        "max_retry_wait_time": 30,
    },
    "couchbase": {"backend_settings": None},
    "elasticsearch": {
        **dict.fromkeys(("retry_on_timeout", "max_retries", "timeout")),
        "save_meta_as_text": True,
    },
    "gcs": {"bucket": None, "project": None, "base_path": "", "ttl": 0},
    "mongodb": {"backend_settings": None},
    "s3": dict.fromkeys(
        ("access_key_id", "secret_access_key", "bucket", "base_path", "endpoint_url", "region")
    ),
}


def _stores() -> tuple[Setting, ...]:
    return tuple(
        Setting(
            name=f"{store}_{part}",
            default=default,
            kind=kinds.ANYTHING,
            unit="",
            doc=f"of the {store} result store",
            served=f"there is no {store} result store; use result_backend='redis://…' or 'sqlite:///…'",
            refused=True,
        )
        for store, parts in _STORES.items()
        for part, default in parts.items()
    )


NOT_SERVED = (*_BEAT, *_EVENT, *_CONTROL, *_DATABASE, *_OBSOLETE, *_stores())
"""Their rows of the table."""
