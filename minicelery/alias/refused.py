"""What of Celery's the alias does not serve, why, and what to do instead.

A reason for a module is one for all that is in it and not served.
"""

from __future__ import annotations

_MESSAGES = "it sends and receives calls of tasks only; for messages of your own install kombu"
_BLUEPRINTS = "its worker has no blueprints and no steps; signals tell when it starts, is ready and ends"
_ANOTHER_STORE = "results are kept by Redis, SQLite, RabbitMQ or memory: name one in result_backend"
_COMMANDS = "its commands are those of `minicelery`; see docs/commands.md"
_INSIDE = "it is one of Celery's own parts; tell us if you need it"
_QUEUES = (
    "queues and routes are settings: task_queues, task_routes; kombu.Queue and kombu.Exchange are served"
)
_PROCESSES = "its pools are of the standard library's processes and threads; use multiprocessing or threading"

REFUSED: dict[str, str] = {
    "billiard": _PROCESSES,
    "celery.app": "it has no app stack to trace and no pickled apps; an app is found by its name",
    "celery.app.amqp": _QUEUES,
    "celery.app.annotations": "task_annotations takes dicts and objects with an annotate() of their own",
    "celery.app.autoretry": "every task has autoretry_for, retry_backoff and retry_jitter by itself",
    "celery.app.backends": "app.backend is the store of results that result_backend names",
    "celery.app.builtins": "its own tasks, such as celery.chord_unlock, are in every app: app.tasks",
    "celery.app.defaults": "settings and their defaults are in docs/configuration.md, and app.conf has them",
    "celery.app.log": "logs are set up by worker_hijack_root_logger, worker_log_format and the signals",
    "celery.app.routes": "task_routes takes dicts, functions and objects with a route_for_task()",
    "celery.app.trace": "a run is made by the worker; task.apply() makes one here, signals tell of each",
    "celery.app.utils": "an app is found by `minicelery -A`, app.conf.humanize() shows settings",
    "celery.apps": "workers and beats are started by `minicelery worker` and `minicelery beat`",
    "celery.apps.multi": "several workers on a machine are a process supervisor's, such as systemd",
    "celery.backends": _ANOTHER_STORE,
    "celery.beat": "beats are run by `minicelery beat`, or by minicelery.beat.Beat; see docs/beat.md",
    "celery.bin": _COMMANDS,
    "celery.bin.celery": "its command line is `minicelery`, and Flower's is `minicelery flower`",
    "celery.bootsteps": _BLUEPRINTS,
    "celery.concurrency": "pools are chosen by name: worker_pool, or --pool",
    "celery.contrib.migrate": "`minicelery migrate` moves messages from one broker to another",
    "celery.contrib.rdb": "use a debugger that attaches to a process, such as debugpy; --pool solo has one that runs tasks",
    "celery.contrib.sphinx": "it has no Sphinx extension",
    "celery.contrib.testing": "minicelery.contrib.testing has what it tests itself with; see docs/testing.md",
    "celery.events.cursesmon": "`minicelery top` shows a fleet in the terminal",
    "celery.events.dumper": "`minicelery events` prints them, with --json one object a line",
    "celery.events.snapshot": "make a Polaroid in a program of your own, which needs no worker",
    "celery.exceptions": "to stop a worker call app.control.shutdown(); a task that raises SystemExit has failed",
    "celery.execute": "app.send_task() calls a task by its name",
    "celery.fixups": "Django is found by DJANGO_SETTINGS_MODULE",
    "celery.loaders": "settings are read by app.config_from_object, modules are named by imports and include",
    "celery.log": "use celery.utils.log.get_task_logger",
    "celery.maybe_patch_concurrency": "it has no pools of gevent or eventlet; see docs/pools.md",
    "celery.messaging": _QUEUES,
    "celery.platforms": "processes are detached, renamed and limited by whoever starts them, such as systemd",
    "celery.security": "setup_security() with the settings security_key, security_certificate and security_cert_store is all",
    "celery.utils.annotations": _INSIDE,
    "celery.utils.collections": "there are no buffers of messages; the standard library's collections have the rest",
    "celery.utils.debug": "use tracemalloc, or a profiler of memory such as memray",
    "celery.utils.deprecated": "use the warnings module, or typing_extensions.deprecated",
    "celery.utils.functional": "inspect.signature does what it was for",
    "celery.utils.graph": "result.build_graph() makes a graph of results; for graphs of your own use graphlib",
    "celery.utils.log": "what tasks print is logged where worker_redirect_stdouts is on",
    "celery.utils.objects": "use contextlib, or dict.get",
    "celery.utils.quorum_queues": "quorum queues need nothing special; name them by task_default_queue_type",
    "celery.utils.saferepr": "saferepr() is all of it",
    "celery.utils.serialization": "exceptions go between processes as text; see docs/wire.md",
    "celery.utils.static": "it has no pictures",
    "celery.utils.sysinfo": "use os.cpu_count, shutil.disk_usage, or psutil",
    "celery.utils.threads": "use threading and contextvars",
    "celery.utils.timer2": "use threading.Timer, or call a task with countdown=",
    "celery.worker": _BLUEPRINTS,
    "celery.worker.autoscale": "it scales by --autoscale and by app.control.autoscale",
    "celery.worker.state": "what a worker runs and has run is told by app.control.inspect().active() and .stats()",
    "kombu": _MESSAGES,
}
