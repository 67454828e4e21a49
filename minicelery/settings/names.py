"""What else settings are called: by the names they had before Celery 4, with a prefix, misspelt."""

from __future__ import annotations

from minicelery.settings.table import OWN, TABLE

_ODD = {
    "ENABLE_UTC": "enable_utc",
    "RESULT_ACCEPT_CONTENT": "result_accept_content",
    "CELERY_MESSAGE_COMPRESSION": "task_compression",
    "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
    "CELERYD_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
    "CELERYD_TASK_TIME_LIMIT": "task_time_limit",
    "CELERY_DISABLE_RATE_LIMITS": "worker_disable_rate_limits",
    "CELERY_ENABLE_REMOTE_CONTROL": "worker_enable_remote_control",
    "CELERYD_WORKER_LOST_WAIT": "worker_lost_wait",
    "CELERY_REDIRECT_STDOUTS": "worker_redirect_stdouts",
    "CELERY_REDIRECT_STDOUTS_LEVEL": "worker_redirect_stdouts_level",
    "CELERY_SEND_EVENTS": "worker_send_task_events",
    "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
    "CELERY_TASK_RESULT_EXPIRES": "result_expires",
    "CELERY_RESULT_DBURI": "database_url",
    "CELERY_RESULT_ENGINE_OPTIONS": "database_engine_options",
    "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS": "database_short_lived_sessions",
    "CELERY_RESULT_DB_TABLENAMES": "database_table_names",
}

_PREFIXES = {"task": "CELERY", "worker": "CELERYD", "beat": "CELERYBEAT"}
_UPPER_CASE = ("broker", "control", "database", "azureblockblob", "cassandra", "cosmosdbsql", "gcs", "s3")

# Their old name is CELERY_ and the new one.
_SAME = (
    "task_protocol",
    "task_publish_retry",
    "task_publish_retry_policy",
    "task_serializer",
    "worker_direct",
)

AMBIGUOUS = ("AZUREBLOCKBLOB_", "CASSANDRA_", "CONTROL_", "COSMOSDBSQL_", "DATABASE_", "GCS_", "S3_")
"""Beginnings of old names that in an application's configuration most likely are its own."""


def _old_names() -> dict[str, str]:
    names = dict(_ODD)
    for name in TABLE.keys() - set(_ODD.values()) - set(_SAME) - {row.name for row in OWN}:
        group, _, rest = name.partition("_")
        if group in _PREFIXES:
            names[f"{_PREFIXES[group]}_{rest.upper()}"] = name
        elif group in _UPPER_CASE:
            names[name.upper()] = name
    return names


OLD_NAMES: dict[str, str] = _old_names()
"""Old name -> the name in the table; without those that are just ``CELERY_`` and the new name."""


def namespaced(key: str) -> str | None:
    """The setting that `key` names with ``CELERY_`` in front, or None."""
    name = key[len("CELERY_") :].lower()
    return name if key.startswith("CELERY_") and name in TABLE else None


def renamed(key: str) -> str | None:
    """The setting whose old name is `key`, in upper or lower case, or None."""
    key = key.upper()
    return OLD_NAMES.get(key) or namespaced(key)


def is_foreign(key: str) -> bool:
    """Whether `key`, found in a shared configuration, is most likely not meant for us."""
    if not key.isupper():
        return False
    return key.startswith(AMBIGUOUS) or not (
        renamed(key) or key.startswith(("CELERY_", "CELERYD_", "CELERYBEAT_"))
    )


def suggestion(key: str) -> str:
    """Words to end a message about the unknown `key` with; empty where nothing is near."""
    found = nearest(key.lower().removeprefix("celery_"), cutoff=0.6)
    if found is None:
        return ""
    return f"; did you mean {('CELERY_' + found.upper() if key.startswith('CELERY_') else found)!r}?"


def nearest(name: str, cutoff: float) -> str | None:
    """The setting spelt most like `name`; `cutoff` is how alike, from 0 to 1."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, TABLE, n=1, cutoff=cutoff)), None)
