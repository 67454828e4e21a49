from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicelery.exceptions import ImproperlyConfigured, UnknownSetting
from minicelery.settings import RenamedSetting, Settings, UnservedSetting, masked, read_config, read_envvar
from minicelery.settings.names import AMBIGUOUS, OLD_NAMES, namespaced
from minicelery.settings.table import OWN, TABLE, as_markdown

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def conf() -> Settings:
    return Settings()


# -- the table -----------------------------------------------------------------------------


def test_the_table_has_every_setting_of_celery_with_its_default() -> None:
    defaults: dict[str, Any] = pytest.importorskip("celery.app.defaults").DEFAULTS
    undocumented = {
        "redis_client_name", "redis_backend_health_check_interval", "redis_backend_credential_provider"
    }  # fmt: skip
    assert TABLE.keys() - undocumented - {row.name for row in OWN} == defaults.keys()
    for name, default in defaults.items():
        plain = default.total_seconds() if isinstance(default, timedelta) else default
        assert TABLE[name].default == plain, name


def test_every_old_name_of_celery_leads_to_the_same_setting() -> None:
    old_to_new: dict[str, str] = pytest.importorskip("celery.app.defaults")._TO_NEW_KEY
    assert {old: OLD_NAMES.get(old) or namespaced(old) for old in old_to_new} == old_to_new
    assert OLD_NAMES.keys() <= old_to_new.keys()


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_a_default_is_a_value_its_own_check_lets_through(row: Any) -> None:
    conf = Settings()
    conf[row.name] = row.default
    assert conf[row.name] == row.default
    assert not conf.changed()


def test_no_new_name_with_celery_in_front_is_the_old_name_of_another_setting() -> None:
    for name in TABLE:
        assert OLD_NAMES.get(f"CELERY_{name.upper()}", name) == name


def test_the_markdown_lists_every_setting_once() -> None:
    lines = as_markdown().splitlines()
    for name in TABLE:
        assert len([line for line in lines if line.startswith(f"| `{name}` |")]) == 1
    assert all(line.count(" | ") == 5 for line in lines if line.startswith("| `"))


def test_importing_the_settings_pulls_in_nothing_slow() -> None:
    code = "import sys, minicelery.settings; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"zoneinfo", "difflib", "inspect", "dataclasses", "json", "logging", "redis"} & set(loaded)


# -- reading and changing ------------------------------------------------------------------


def test_a_setting_is_a_plain_attribute_of_the_instance(conf: Settings) -> None:
    conf.task_acks_late = True
    assert vars(conf)["task_acks_late"] is True
    assert conf.task_acks_late is True
    assert conf["task_acks_late"] is True
    assert conf.get("task_acks_late") is True


def test_a_known_name_never_reaches_the_getattr_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "__getattr__", lambda self, name: pytest.fail(name))
    conf = Settings()
    for name in TABLE:
        getattr(conf, name)


def test_it_is_a_mapping_of_every_setting(conf: Settings) -> None:
    assert list(conf) == list(TABLE)
    assert dict(conf.items())["broker_url"] is None
    assert "task_serializer" in conf
    assert "CELERY_TASK_SERIALIZER" in conf
    assert "CELERYD_CONCURRENCY" in conf
    assert "task_serialiser" not in conf
    assert conf.get("task_serialiser", 5) == 5
    assert conf.get("task_default_queue") == "celery"


def test_reading_an_unknown_name_suggests_the_nearest(conf: Settings) -> None:
    with pytest.raises(AttributeError, match=r"task_serialiser.*did you mean 'task_serializer'"):
        _ = conf.task_serialiser
    with pytest.raises(KeyError):
        conf["task_serialiser"]


def test_changed_holds_what_differs_from_the_defaults(conf: Settings) -> None:
    conf.update({"task_serializer": "json", "task_time_limit": 30}, worker_concurrency=2)
    conf.task_publish_retry_policy["max_retries"] = 9
    assert conf.changed() == {
        "task_time_limit": 30,
        "task_publish_retry_policy": {
            "max_retries": 9, "interval_start": 0, "interval_max": 1, "interval_step": 0.2
        },
        "worker_concurrency": 2,
    }  # fmt: skip


def test_a_dict_changed_in_place_leaves_other_settings_alone(conf: Settings) -> None:
    given = {"socket_timeout": 5}
    conf.broker_transport_options = given
    twin = conf.copy()
    conf.broker_transport_options["socket_timeout"] = 7
    assert given == {"socket_timeout": 5}
    assert twin.broker_transport_options == {"socket_timeout": 5}
    assert Settings().broker_transport_options == {}


def test_check_looks_again_at_what_was_changed_in_place(conf: Settings) -> None:
    conf.database_engine_options["echo"] = True
    with pytest.warns(UnservedSetting, match="database_engine_options.*come with a later version"):
        conf.check()


def test_deleting_a_setting_puts_it_back_to_its_default(conf: Settings) -> None:
    conf.update(task_time_limit=30, task_default_queue="q", broker_transport_options={"a": 1})
    del conf.task_time_limit
    del conf["CELERY_TASK_DEFAULT_QUEUE"]
    del conf["broker_transport_options"]
    assert not conf.changed()
    assert not conf.value_set_for("task_time_limit")
    with pytest.raises(AttributeError):
        del conf.nothing_like_it
    with pytest.raises(KeyError):
        del conf["nothing_like_it"]


def test_setdefault_sets_only_what_nothing_has_set(conf: Settings) -> None:
    conf.task_default_queue = "mine"
    assert conf.setdefault("task_default_queue", "other") == "mine"
    assert conf.setdefault("task_time_limit", 5) == 5


def test_a_default_set_explicitly_is_told_apart_from_one_that_was_not(conf: Settings) -> None:
    assert not conf.value_set_for("worker_prefetch_multiplier")
    conf.worker_prefetch_multiplier = 4
    assert conf.value_set_for("worker_prefetch_multiplier")


def test_defaults_added_later_give_way_to_what_is_set(conf: Settings) -> None:
    conf.task_default_queue = "celery"
    conf.add_defaults({"task_default_queue": "other", "task_time_limit": 5})
    assert (conf.task_default_queue, conf.task_time_limit) == ("celery", 5)


def test_every_change_raises_the_revision(conf: Settings) -> None:
    seen = [conf.revision]
    conf.task_time_limit = 5
    seen.append(conf.revision)
    conf.update(task_time_limit=6)
    seen.append(conf.revision)
    del conf.task_time_limit
    seen.append(conf.revision)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    "duplicate", [Settings.copy, copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_is_equal_and_apart(conf: Settings, duplicate: Any) -> None:
    conf.update(task_time_limit=5, broker_transport_options={"a": 1})
    twin = duplicate(conf)
    assert twin == conf
    assert twin.value_set_for("task_time_limit")
    twin.task_time_limit = 6
    assert conf.task_time_limit == 5


def test_an_update_that_fails_changes_nothing(conf: Settings) -> None:
    with pytest.raises(ImproperlyConfigured):
        conf.update(task_time_limit=5, worker_concurrency=-1)
    assert not conf.changed()


# -- old names, prefixes and foreign keys --------------------------------------------------


def test_a_flask_configuration_is_taken_by_its_celery_keys(conf: Settings) -> None:
    conf.update(
        {
            "DEBUG": True,
            "SECRET_KEY": "s3cret",
            "S3_BUCKET": "pictures",
            "CELERY_BROKER_URL": "redis://localhost:6379/0",
            "CELERY_RESULT_BACKEND": "redis://localhost:6379/1",
            "CELERY_TASK_TRACK_STARTED": True,
            "CELERY_TIMEZONE": "Europe/Berlin",
            "CELERY_TASK_SERIALIZER": "json",
        }
    )
    assert conf.changed() == {
        "broker_url": "redis://localhost:6379/0",
        "result_backend": "redis://localhost:6379/1",
        "task_track_started": True,
        "timezone": "Europe/Berlin",
    }


def test_lower_case_wins_over_prefixed_and_prefixed_over_old(conf: Settings) -> None:
    with pytest.warns(RenamedSetting):
        conf.update({"task_time_limit": 1, "CELERY_TASK_TIME_LIMIT": 2, "CELERYD_TASK_TIME_LIMIT": 3})
    assert conf.task_time_limit == 1
    conf.update({"CELERY_TASK_TIME_LIMIT": 2, "CELERYD_TASK_TIME_LIMIT": 3})
    assert conf.task_time_limit == 2


def test_old_and_new_names_may_be_mixed_and_the_rename_is_said_once(conf: Settings) -> None:
    with pytest.warns(RenamedSetting, match="'CELERYD_CONCURRENCY' is now called 'worker_concurrency'"):
        conf.update({"CELERYD_CONCURRENCY": 2, "result_backend": "redis://"})
    conf.update({"CELERYD_CONCURRENCY": 3})
    assert (conf.worker_concurrency, conf.result_backend) == (3, "redis://")
    assert conf["CELERYD_CONCURRENCY"] == 3


def test_old_names_are_read_and_written_as_attributes_and_items(conf: Settings) -> None:
    conf.CELERY_RESULT_BACKEND = "redis://"
    assert conf.CELERY_RESULT_BACKEND == "redis://"
    with pytest.warns(RenamedSetting):
        conf.BROKER_URL = "redis://one"
    with pytest.warns(RenamedSetting):
        conf["celeryd_concurrency"] = 4
    assert conf["BROKER_URL"] == conf.broker_url == "redis://one"
    assert conf.worker_concurrency == 4
    assert set(conf.changed()) == {"result_backend", "broker_url", "worker_concurrency"}


def test_the_warning_points_at_the_line_that_set_it(conf: Settings) -> None:
    with pytest.warns(UnknownSetting) as by_attribute:
        conf.task_serialiser = "json"
    with pytest.warns(UnknownSetting) as by_update:
        conf.update({"borker_url": "redis://"})
    assert [warning.filename for warning in (*by_attribute, *by_update)] == [__file__, __file__]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("task_serialiser", "task_serializer"),
        ("borker_url", "broker_url"),
        ("CELERY_TASK_SERIALISER", "CELERY_TASK_SERIALIZER"),
    ],
)
def test_a_misspelt_setting_is_warned_of_with_the_nearest(conf: Settings, key: str, nearest: str) -> None:
    with pytest.warns(UnknownSetting, match=f"unknown setting '{key}'; did you mean '{nearest}'"):
        conf.update({key: "json"})
    assert conf[key] == "json"
    assert conf.task_serializer == "json"


@pytest.mark.parametrize("strict", [{"strict_config": True}, {"CELERY_STRICT_CONFIG": True}, {}])
def test_with_strict_config_a_misspelt_setting_is_an_error(strict: dict[str, Any]) -> None:
    conf = Settings(strict=not strict)
    with pytest.raises(ImproperlyConfigured, match="unknown setting 'borker_url'; did you mean 'broker_url'"):
        conf.update({"borker_url": "redis://", **strict})
    assert Settings(strict=True).strict_config is True


def test_old_names_that_are_likely_an_applications_own_are_passed_over_in_mappings(conf: Settings) -> None:
    conf.update(dict.fromkeys((name for name in OLD_NAMES if name.startswith(AMBIGUOUS)), "x"))
    assert not conf.changed()


# -- checks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("task_acks_late", 1, True),
        ("task_time_limit", 30, 30),
        ("task_time_limit", 0.5, 0.5),
        ("result_expires", timedelta(hours=1), 3600.0),
        ("result_expires", 0, 0),
        ("result_expires", None, None),
        ("worker_concurrency", "auto", "auto"),
        ("worker_concurrency", 4.0, 4),
        ("worker_pool", "processes", "prefork"),
        ("task_default_delivery_mode", "transient", 1),
        ("accept_content", {"msgpack", "json"}, ("json", "msgpack")),
        ("accept_content", ["application/json"], ("application/json",)),
        ("imports", ["a", "b"], ("a", "b")),
        ("include", "a", ("a",)),
        ("broker_url", ["redis://one"], "redis://one"),
        ("broker_url", "", None),
        ("broker_url", "memory", "memory"),
        ("broker_url", "sqlite:///at@home.db", "sqlite:///at@home.db"),
        ("broker_url", "redis://user:a%2Fb@host:6379/0", "redis://user:a%2Fb@host:6379/0"),
        ("result_backend", "django-db", "django-db"),
        ("broker_use_ssl", {"ssl_cert_reqs": 0}, {"ssl_cert_reqs": 0}),
        ("worker_redirect_stdouts_level", "info", "INFO"),
        ("worker_unregistered_task", "dead-letter", "dead-letter"),
        ("timezone", timezone.utc, timezone.utc),
    ],
)
def test_a_good_value_is_kept_in_its_plain_form(conf: Settings, name: str, given: Any, kept: Any) -> None:
    conf[name] = given
    assert conf[name] == kept
    assert type(conf[name]) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task_acks_late", "False", "task_acks_late: expected a boolean, got 'False'; text is always true"),
        ("task_acks_late", None, "expected a boolean, got None"),
        ("task_time_limit", -1, "expected a number of seconds >= 0, or None, got -1"),
        ("task_time_limit", float("nan"), "got nan"),
        ("task_time_limit", True, "got True"),
        ("task_time_limit", timedelta(1), "total_seconds"),
        ("task_publish_deadline", 0, "expected a number of seconds > 0, got 0"),
        ("worker_concurrency", "4", "expected an integer >= 1 or 'auto', or None, got '4'"),
        ("worker_concurrency", 2.5, "got 2.5"),
        ("worker_prefetch_multiplier", float("inf"), "got inf"),
        ("task_default_priority", 256, "an integer from 0 to 255"),
        ("task_serializer", "jsno", "registered serializer, got 'jsno'; no serializer is named 'jsno'"),
        ("task_serializer", ["json"], "expected 'json' or 'msgpack'"),
        ("task_protocol", 1, "expected 2, got 1; which is not served yet"),
        ("worker_pool", "gevent", "not served yet"),
        ("worker_pool_start_method", "forkserver", "expected 'fork' or 'spawn'"),
        ("task_compression", "zpaq", "expected 'zlib' or 'gzip'"),
        ("accept_content", "json", r"accept_content: expected a list.*got 'json'; write \['json'\]"),
        ("accept_content", ["jsno"], "no serializer is named 'jsno'"),
        ("accept_content", ["jsno/x"], "none is known"),
        ("accept_content", [], "none is known"),
        ("security_digest", "md5", "expected 'sha256'"),
        ("imports", 5, "a list or tuple of module names"),
        ("broker_url", 5, "broker_url: expected a server's URL, or None, got a value of type int"),
        ("broker_url", "redis://a;redis://b", "a list of servers"),
        ("broker_url", ["redis://a", "redis://b"], "a list of servers"),
        ("broker_url", "redis://a:notaport/0", "port 'notaport'"),
        ("broker_transport_options", [1], "expected a mapping"),
        ("worker_redirect_stdouts_level", "LOUD", "DEBUG, INFO"),
        ("timezone", "", "a time zone"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(
    conf: Settings, name: str, value: Any, words: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        conf[name] = value
    assert name in str(caught.value)
    assert not conf.changed()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker_url", "redis://:s3cret@host:port/0"),
        ("broker_url", "redis://user:s3cret/x@y@host:99999999"),
        ("broker_url", "redis://user:123/s3cret@host/0"),
        ("result_backend", "redis://:s3cret?x@host/0"),
        ("broker_url", "redis:s3cret@host/0"),
        ("broker_url", b"redis://:s3cret@host/0"),
        ("broker_url", ["redis://:s3cret@a", "redis://:s3cret@b"]),
        ("result_backend", "redis://:s3cret@host:port/0"),
        ("redis_password", ["s3cret"]),
        ("security_key_password", ["s3cret"]),
        ("broker_password", "s3cret"),
        ("broker_transport_options", [("password", "s3cret")]),
        ("broker_read_url", "redis://:s3cret@elsewhere/0"),
    ],
)
def test_errors_never_show_a_secret(conf: Settings, name: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        conf.update({name: value})
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__


# -- what is not served --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beat_enable_remote_control", True),
        ("worker_soft_shutdown_timeout", 3.0),
        ("beat_sync_every", 5),
        ("event_queue_durable", True),
        ("control_queue_durable", True),
        ("database_short_lived_sessions", True),
    ],
)
def test_a_known_setting_without_effect_is_said_so_once(conf: Settings, name: str, value: Any) -> None:
    words = f"{name} is known but not served by this version: .*; it has no effect"
    with pytest.warns(UnservedSetting, match=words):
        conf[name] = value
    conf[name] = value
    assert conf[name] == value


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("broker_host", "localhost", "say it in broker_url"),
        ("broker_transport", "redis", "say it in broker_url"),
        ("result_exchange", "mine", "result_backend"),
        ("cache_backend_options", {"x": 1}, "result_backend='redis://"),
        ("mongodb_backend_settings", {"host": "h"}, "result_backend='redis://"),
        ("s3_bucket", "b", "result_backend='redis://"),
    ],
)
def test_what_would_lose_work_or_safety_is_refused(
    conf: Settings, name: str, value: Any, instead: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"{name} is known but not served: .*{instead}"):
        conf[name] = value


def test_settings_that_are_served_are_set_without_a_word(conf: Settings) -> None:
    conf.update(
        task_acks_late=True,
        worker_disable_rate_limits=True,
        result_extended=True,
        broker_transport_options={"global_keyprefix": "p:", "socket_timeout": 3},
        result_backend_transport_options={"global_keyprefix": "p:"},
        redis_password="",
        worker_max_memory_per_child=200_000,
    )
    conf.check()


@pytest.mark.parametrize("name", ["broker_transport_options", "result_backend_transport_options"])
def test_a_visibility_timeout_is_accepted_and_said_to_be_needless_once(conf: Settings, name: str) -> None:
    with pytest.warns(UnservedSetting, match="visibility_timeout.*not needed"):
        conf[name] = {"visibility_timeout": 3600}
    conf[name] = {"visibility_timeout": 7200}


def test_content_that_is_accepted_but_never_read_is_said_so(conf: Settings) -> None:
    with pytest.warns(UnservedSetting, match="accept_content: 'text/x-own'"):
        conf.accept_content = ["json", "text/x-own"]
    assert conf.accept_content == ("json", "text/x-own")


def test_reading_and_writing_urls_may_only_repeat_the_brokers(conf: Settings) -> None:
    conf.update(broker_read_url="redis://a", broker_write_url="redis://a", broker_url="redis://a")
    with pytest.raises(ImproperlyConfigured, match="broker_read_url='redis://b' differs from broker_url"):
        conf.broker_read_url = "redis://b"
    with pytest.raises(ImproperlyConfigured, match="broker_read_url"):
        del conf.broker_url
    with pytest.raises(ImproperlyConfigured, match="set broker_url alone"):
        Settings({"broker_write_url": "redis://a"})


# -- showing -------------------------------------------------------------------------------


def test_the_readable_text_shows_changes_and_no_secrets(conf: Settings) -> None:
    conf.update(
        broker_url="redis://user:s3cret@host:6379/0?password=s3cret",
        redis_password="s3cret",
        broker_transport_options={"sentinel_kwargs": {"password": "s3cret"}, "global_keyprefix": "p:"},
        task_time_limit=5,
    )
    text = conf.humanize()
    assert "s3cret" not in text
    assert "s3cret" not in repr(conf)
    assert text.splitlines() == [
        "task_time_limit: 5",
        "broker_url: 'redis://user:**@host:6379/0'",
        "broker_transport_options: {'sentinel_kwargs': {'password': '**'}, 'global_keyprefix': 'p:'}",
        "redis_password: '**'",
    ]
    assert len(conf.humanize(with_defaults=True).splitlines()) == len(TABLE)


@pytest.mark.parametrize("name", ["a_password", "SECRET", "api_token", "security_key", "s3_access_key_id"])
def test_values_under_secret_names_are_masked(name: str) -> None:
    assert masked(name, "s3cret") == "**"
    assert masked(name, None) is None
    assert masked("options", [{name: "s3cret"}, ("redis://:s3cret@h",)]) == [{name: "**"}, ("redis://:**@h",)]


# -- time zones ----------------------------------------------------------------------------


def test_the_zone_is_utc_unless_timezone_names_another(conf: Settings) -> None:
    assert conf.zone() is timezone.utc
    conf.timezone = "Europe/Berlin"
    assert datetime(2026, 7, 1, tzinfo=conf.zone()).utcoffset() == timedelta(hours=2)
    conf.timezone = timezone(timedelta(hours=3))
    assert conf.zone() == timezone(timedelta(hours=3))


def test_without_utc_and_timezone_the_zone_is_the_systems(conf: Settings) -> None:
    conf.enable_utc = False
    now = datetime(2026, 1, 1)
    assert now.replace(tzinfo=conf.zone()).utcoffset() == now.astimezone().utcoffset()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("Europe/Berln", "Europe/Berlin"), ("berlin", "Europe/Berlin"), ("Europe", "")],
)
def test_an_unknown_zone_is_refused_with_the_nearest(conf: Settings, name: str, nearest: str) -> None:
    conf.timezone = name
    with pytest.raises(ImproperlyConfigured, match=f"no time zone is named '{name}'.*{nearest}"):
        conf.zone()


# -- the environment -----------------------------------------------------------------------


def test_the_environment_is_weaker_than_what_the_program_sets() -> None:
    environ = {"CELERY_BROKER_URL": "redis://env", "CELERY_RESULT_BACKEND": "redis://env/1", "PATH": "/bin"}
    before = Settings({"broker_url": "redis://mine"})
    before.load_environment(environ)
    after = Settings()
    after.load_environment(environ)
    assert after.value_set_for("broker_url")
    after.broker_url = "redis://mine"
    assert before == after
    assert (after.broker_url, after.result_backend) == ("redis://mine", "redis://env/1")


def test_our_own_variables_win_over_celerys_and_set_anything_text_can_say(conf: Settings) -> None:
    conf.load_environment(
        {
            "CELERY_BROKER_URL": "redis://celery",
            "MINICELERY_BROKER_URL": "redis://ours",
            "CELERY_TASK_ALWAYS_EAGER": "true",
            "MINICELERY_TASK_ACKS_LATE": "1",
            "MINICELERY_TASK_TRACK_STARTED": "false",
            "MINICELERY_WORKER_CONCURRENCY": "3",
            "MINICELERY_TASK_TIME_LIMIT": "2.5",
            "MINICELERY_TASK_PROTOCOL": "2",
            "MINICELERY_IMPORTS": "a, b",
            "MINICELERY_RESULT_BACKEND": "",
            "MINICELERY_SOMETHING_ELSE": "x",
        }
    )
    assert conf.changed() == {
        "broker_url": "redis://ours",
        "task_acks_late": True,
        "worker_concurrency": 3,
        "task_time_limit": 2.5,
        "imports": ("a", "b"),
    }


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MINICELERY_TASK_ACKS_LATE", "maybe"),
        ("MINICELERY_TASK_TIME_LIMIT", "soon"),
        ("MINICELERY_BEAT_SCHEDULE", "{}"),
        ("CELERY_BROKER_URL", "redis://host:port"),
    ],
)
def test_a_bad_variable_is_refused_by_its_own_name(conf: Settings, variable: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"^{variable}: "):
        conf.load_environment({variable: value})


# -- sources -------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module that can be imported only from the current directory."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


CONFIG = """
import os
from datetime import timedelta
broker_url = "redis://one"
CELERY_TASK_TRACK_STARTED = True
CELERYD_CONCURRENCY = 2
task_serialiser = "json"
borker_url = "redis://two"
DEBUG = True
result_expires = timedelta(days=2)
database_path = os.getcwd
names = ["x"]
def task_maker(): pass
"""

CONFIG_READ = {
    "broker_url": "redis://one",
    "CELERY_TASK_TRACK_STARTED": True,
    "CELERYD_CONCURRENCY": 2,
    "task_serialiser": "json",
    "borker_url": "redis://two",
    "result_expires": timedelta(days=2),
}


def test_a_module_gives_its_settings_and_nothing_else(module: Any) -> None:
    module("minicelery_settings_one", CONFIG)
    path = list(sys.path)
    assert read_config("minicelery_settings_one") == CONFIG_READ
    assert sys.path == path
    with pytest.warns() as caught:
        conf = Settings(read_config("minicelery_settings_one"))
    assert {warning.category for warning in caught} == {UnknownSetting, RenamedSetting}
    assert (conf.worker_concurrency, conf.task_track_started) == (2, True)


@pytest.mark.parametrize("name", ["minicelery_settings_two:Config.Inner", "minicelery_settings_two.Config"])
def test_an_attribute_of_a_module_may_be_named(module: Any, name: str) -> None:
    module(
        "minicelery_settings_two",
        "class Config:\n task_time_limit = 5\n class Inner:\n  task_time_limit = 5",
    )
    assert read_config(name) == {"task_time_limit": 5}


@pytest.mark.parametrize("make", [dict, lambda **names: SimpleNamespace(**names)])
def test_with_a_namespace_only_keys_with_it_count(make: Any) -> None:
    source = make(
        CELERY_TASK_TIME_LIMIT=5, CELERY_ALWAYS_EAGER=True, CELERY_TASK_SERIALISER="x",
        broker_url="redis://", DEBUG=True, CELERYD_CONCURRENCY=3,
    )  # fmt: skip
    assert read_config(source, "CELERY") == {
        "task_time_limit": 5, "CELERY_ALWAYS_EAGER": True, "task_serialiser": "x"
    }  # fmt: skip
    assert read_config(make(MINE_TASK_TIME_LIMIT=5), namespace="MINE") == {"task_time_limit": 5}


def test_reading_by_namespace_touches_no_other_attribute() -> None:
    class Lazy:
        CELERY_TIMEZONE = "UTC"

        @property
        def USE_L10N(self) -> bool:  # noqa: N802 - Django's name
            raise AssertionError("deprecated")

    assert read_config(Lazy(), "CELERY") == {"timezone": "UTC"}
    assert read_config(Lazy()) == {"CELERY_TIMEZONE": "UTC"}


def test_mappings_and_classes_are_sources_too() -> None:
    class Config:
        task_time_limit = 5
        CELERY_TIMEZONE = "UTC"
        other = object()

    assert read_config(Config) == {"task_time_limit": 5, "CELERY_TIMEZONE": "UTC"}
    assert read_config({"task_time_limit": 5, "tsk": 1, "DEBUG": True}) == {"task_time_limit": 5, "tsk": 1}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minicelery_no_such", "no module is named 'minicelery_no_such'; looked along sys.path"),
        ("minicelery_no_such.py", "write it without .py: 'minicelery_no_such'"),
        ("minicelery_no_such:attribute", "no module is named"),
        ("minicelery.settings:nothing", "'minicelery.settings' has no attribute 'nothing'"),
        ("minicelery.settings.nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_missing_module_is_named_with_a_hint_or_silently_empty(name: str, words: str) -> None:
    with pytest.raises(ImportError, match=words) as caught:
        read_config(name)
    assert repr(name) in str(caught.value)
    assert read_config(name, silent=True) == {}


def test_a_module_that_fails_to_import_another_is_never_silent(module: Any) -> None:
    module("minicelery_settings_broken", "import minicelery_no_such_module")
    with pytest.raises(ModuleNotFoundError, match="minicelery_no_such_module"):
        read_config("minicelery_settings_broken", silent=True)


def test_an_environment_variable_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CONFIG", "celeryconfig")
    assert read_envvar("MY_CONFIG") == "celeryconfig"
    monkeypatch.setenv("MY_CONFIG", "")
    with pytest.raises(ImproperlyConfigured, match=r"'MY_CONFIG' is not set.*MY_CONFIG=celeryconfig"):
        read_envvar("MY_CONFIG")


def test_an_app_reads_settings_without_a_warning_by_default() -> None:
    with warnings.catch_warnings(record=True) as caught:
        Settings().load_environment({})
    assert not caught
