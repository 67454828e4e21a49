"""What Django's documentation says of task backends, of this one.  Run by test_django_tasks.py."""

import asyncio
import os
import pickle
import subprocess
import sys
import tempfile
import time
import unittest
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import project_app
import project_jobs as jobs
from django import VERSION
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import transaction
from django.tasks import TaskResult, TaskResultStatus, default_task_backend, task, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.test import modify_settings, override_settings

from minicelery import Celery
from minicelery.contrib.django.problems import CallInTransaction
from minicelery.contrib.django.tasks.backend import broker_priority
from tests.processes import end

BACKEND = "minicelery.contrib.django.tasks.MiniceleryBackend"
BANNER = os.environ["PROJECT_LOG"] + ".banner"
worker = None


def setUpModule():
    global worker
    call_command("migrate", verbosity=0)
    command = [
        sys.executable,
        "-m",
        "minicelery",
        "-A",
        "project_app",
        "worker",
        "-c",
        "2",
        "-Q",
        "celery,mail",
    ]
    with open(BANNER, "w") as file:
        worker = subprocess.Popen(command, stdout=file)


def tearDownModule():
    end(worker)


def until(predicate, timeout=40.0):
    last = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < last, f"not within {timeout} s"
        time.sleep(0.01)
    return value


def ended(result):
    def is_finished():
        result.refresh()
        return result.is_finished

    until(is_finished)
    return result


def heard(result):
    with open(jobs.LOG) as file:
        return [line.split()[1:] for line in file if line.startswith(result.id)]


class Enqueueing(unittest.TestCase):
    def test_a_result_is_ready_at_first_and_then_successful(self):
        before = datetime.now(timezone.utc)
        result = jobs.add.enqueue(2, y=3)
        after = datetime.now(timezone.utc)
        self.assertIsInstance(result, TaskResult)
        self.assertEqual((result.status, result.attempts), (TaskResultStatus.READY, 0))
        self.assertLess(len(result.id), 64)
        self.assertEqual((result.args, result.kwargs, result.backend), ([2], {"y": 3}, "default"))
        self.assertTrue(before <= result.enqueued_at <= after, result.enqueued_at)
        for name in ("started_at", "finished_at", "last_attempted_at"):
            self.assertIsNone(getattr(result, name))
        with self.assertRaisesRegex(ValueError, "has not finished yet"):
            _ = result.return_value
        ended(result)
        self.assertEqual((result.status, result.return_value), (TaskResultStatus.SUCCESSFUL, 5))
        self.assertEqual((result.attempts, result.errors), (1, []))
        self.assertIn("@", result.worker_ids[0])
        self.assertLessEqual(result.enqueued_at, result.started_at)
        self.assertLessEqual(result.started_at, result.finished_at)
        self.assertEqual(result.started_at, result.last_attempted_at)

    def test_a_task_that_runs_is_running(self):
        with tempfile.TemporaryDirectory() as folder:
            result = jobs.slow.enqueue(folder)
            until(lambda: os.path.exists(os.path.join(folder, "begun")))
            result.refresh()
            self.assertEqual((result.status, result.attempts), (TaskResultStatus.RUNNING, 1))
            self.assertIsNone(result.finished_at)
            open(os.path.join(folder, "go"), "w").close()
            self.assertEqual(ended(result).return_value, "slow")

    def test_a_failed_task_has_its_exception_and_traceback(self):
        result = ended(jobs.fail.enqueue("too bad"))
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        with self.assertRaisesRegex(ValueError, "failed"):
            _ = result.return_value
        (error,) = result.errors
        self.assertIs(error.exception_class, ValueError)
        self.assertEqual(error.exception_class_path, "builtins.ValueError")
        self.assertIn("ValueError: too bad", error.traceback)
        self.assertIn("project_jobs.py", error.traceback)

    def test_a_value_that_json_has_not_fails_the_task(self):
        self.assertIs(ended(jobs.strange.enqueue()).errors[0].exception_class, TypeError)

    def test_a_task_that_exits_fails_and_its_worker_goes_on(self):
        self.assertIs(ended(jobs.leave.enqueue()).errors[0].exception_class, SystemExit)
        self.assertEqual(ended(jobs.add.enqueue(1)).return_value, 2)

    def test_a_coroutine_is_run_and_its_value_is_what_json_has(self):
        self.assertEqual(ended(jobs.wait.enqueue(0.01)).return_value, [0.01, "waited"])
        result = ended(jobs.fail_async.enqueue("gone"))
        self.assertIs(result.errors[0].exception_class, LookupError)

    def test_the_context_tells_of_the_result_and_the_attempt(self):
        result = ended(jobs.tell.enqueue("more"))
        self.assertEqual(result.return_value, [1, result.id, "RUNNING", ["more"], "more"])

    def test_all_of_it_can_be_awaited(self):
        async def live():
            result = await jobs.add.aenqueue(1, 1)
            while not result.is_finished:
                await asyncio.sleep(0.01)
                await result.arefresh()
            return result, await jobs.add.aget_result(result.id)

        result, again = asyncio.run(asyncio.wait_for(live(), 40))
        self.assertEqual((result.return_value, again.return_value), (2, 2))

    def test_run_after_has_the_task_wait(self):
        due = datetime.now(timezone.utc) + timedelta(seconds=1.5)
        result = jobs.add.using(run_after=due).enqueue(1)
        self.assertEqual(result.task.run_after, due)
        ended(result)
        self.assertGreaterEqual(result.started_at, due - timedelta(milliseconds=1))
        self.assertEqual(jobs.add.get_result(result.id).task.run_after, due)

    def test_a_queue_of_its_own_is_served(self):
        result = ended(jobs.send.enqueue("you"))
        self.assertEqual(result.return_value, "sent to you")
        self.assertEqual((result.task.queue_name, result.task.priority), ("mail", 10))

    def test_the_more_urgent_one_is_served_first(self):
        for priority in (0, -100, 100, -1, 50):
            jobs.add.using(priority=priority, queue_name="unserved").enqueue(priority)
        consumer = project_app.app.broker.consumer(["unserved"], "test", None)
        found = []
        while batch := consumer.swap([], 1, 0):
            found += [jobs_args(delivery.message) for delivery in batch]
        consumer.close()
        self.assertEqual(found[0], 100)
        self.assertEqual(found[-1], -100)
        self.assertLess(found.index(100), found.index(0))
        self.assertLess(found.index(0), found.index(-100))

    def test_arguments_are_what_json_has(self):
        self.assertEqual(jobs.add.enqueue((1, 2), y=[3]).args, [[1, 2]])
        with self.assertRaises(TypeError):
            jobs.add.enqueue(object())

    def test_arguments_that_do_not_fit_are_refused_at_the_call(self):
        with self.assertRaisesRegex(TypeError, "project_jobs.add.*missing.*'x'"):
            jobs.add.enqueue()
        with self.assertRaisesRegex(TypeError, "project_jobs.tell"):
            jobs.tell.enqueue(1, 2, 3)

    def test_with_enqueue_on_commit_a_task_is_sent_when_its_transaction_is_committed(self):
        with transaction.atomic():
            result = jobs.after_commit.enqueue()
            self.assertIsNone(result.enqueued_at)
            with self.assertRaises(TaskResultDoesNotExist):
                jobs.after_commit.get_result(result.id)
        self.assertIsNotNone(result.enqueued_at)
        self.assertEqual(ended(result).return_value, "committed")
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            lost = jobs.after_commit.enqueue()
            raise ZeroDivisionError
        with self.assertRaises(TaskResultDoesNotExist):
            jobs.after_commit.get_result(lost.id)

    def test_in_a_transaction_a_call_is_warned_of_with_django_s_own_words(self):
        with override_settings(DEBUG=True), transaction.atomic():
            with self.assertWarnsRegex(
                UserWarning, "W005: project_jobs.add is .*'enqueue_on_commit'"
            ) as told:
                jobs.add.enqueue(1)
            self.assertEqual([one.category for one in told.warnings].count(CallInTransaction), 1)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                jobs.after_commit.enqueue()

    def test_the_worker_says_that_it_runs_them(self):
        until(lambda: "Django's own, of 'default' and 'any' and" in Path(BANNER).read_text())
        self.assertNotIn("none are registered", Path(BANNER).read_text())

    def test_django_s_backends_for_tests_take_the_same_tasks(self):
        immediate = "django.tasks.backends.immediate.ImmediateBackend"
        with override_settings(TASKS={"default": {"BACKEND": immediate}}):
            good, bad = jobs.add.enqueue(4), jobs.fail.enqueue("here")
            told = jobs.tell.enqueue("more")
        self.assertEqual((good.return_value, good.attempts), (5, 1))
        self.assertEqual((bad.status, bad.errors[0].exception_class), (TaskResultStatus.FAILED, ValueError))
        self.assertEqual(told.return_value, [1, told.id, "RUNNING", ["more"], "more"])
        with override_settings(TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}):
            result = jobs.add.using(priority=5).enqueue(4)
            self.assertEqual(default_task_backend.results, [result])
            self.assertEqual(jobs.add.get_result(result.id).task.priority, 5)

    def test_always_eager_has_it_run_at_once(self):
        project_app.app.conf.task_always_eager = True
        try:
            good, bad = jobs.add.enqueue(4), jobs.fail.enqueue("here")
        finally:
            project_app.app.conf.task_always_eager = False
        self.assertEqual((good.return_value, good.attempts), (5, 1))
        self.assertEqual((bad.status, bad.errors[0].exception_class), (TaskResultStatus.FAILED, ValueError))

    @unittest.skipIf(VERSION < (6, 1), "Django 6.0 has no @task(max_retries=…), and no pickled tasks")
    def test_a_task_may_be_tried_again(self):
        result = ended(jobs.third_time.enqueue())
        self.assertEqual((result.return_value, result.attempts), (3, 3))
        self.assertEqual([error.exception_class for error in result.errors], [ValueError] * 2)
        self.assertLess(result.started_at, result.last_attempted_at)
        result = ended(jobs.never.enqueue())
        self.assertEqual((result.status, result.attempts), (TaskResultStatus.FAILED, 3))
        texts = [error.traceback.strip().rpartition(": ")[2] for error in result.errors]
        self.assertEqual(texts, ["attempt 1", "attempt 2", "attempt 3"])
        until(lambda: "finished" in [line[0] for line in heard(result)])
        self.assertEqual([line[0] for line in heard(result)].count("finished"), 1)
        self.assertEqual(pickle.loads(pickle.dumps(jobs.never)), jobs.never)


def jobs_args(message):
    from minicelery.message import decode_body

    return decode_body(message, frozenset({"application/json"}))[0][1][0]


class Results(unittest.TestCase):
    def test_another_handle_reads_the_same(self):
        result = ended(jobs.add.enqueue(1))
        for again in (jobs.add.get_result(result.id), default_task_backend.get_result(result.id)):
            self.assertEqual(again, result)
            self.assertEqual((again.return_value, again.task), (2, jobs.add))

    def test_an_unknown_id_and_another_task_are_errors(self):
        with self.assertRaises(TaskResultDoesNotExist):
            jobs.add.get_result("nothing")
        with self.assertRaises(TaskResultDoesNotExist):
            default_task_backend.get_result("")
        with self.assertRaises(TaskResultMismatch):
            jobs.send.get_result(jobs.add.enqueue(1).id)

    def test_a_result_is_read_though_its_queue_is_not_valid_any_more(self):
        result = jobs.send.enqueue("you")
        with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default"]}}):
            self.assertEqual(default_task_backend.get_result(result.id).task.queue_name, "mail")
        ended(result)

    def test_a_revoked_task_has_failed(self):
        for seconds in (1, 4, 16):  # more, where it has run before it was revoked
            due = datetime.now(timezone.utc) + timedelta(seconds=seconds)
            result = jobs.add.using(run_after=due).enqueue(1)
            project_app.app.AsyncResult(result.id).revoke()
            if datetime.now(timezone.utc) < due - timedelta(seconds=0.5):
                break
        ended(result)
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        self.assertIn("Revoked", result.errors[0].exception_class_path)

    def test_minicelery_s_own_handle_has_the_value(self):
        result = jobs.add.enqueue(1)
        self.assertEqual(project_app.app.AsyncResult(result.id).get(timeout=40), 2)

    def test_without_a_store_results_are_not_supported(self):
        backend = task_backends["named"]
        self.assertFalse(backend.supports_get_result)
        result = jobs.silent.enqueue()
        with self.assertRaisesRegex(NotImplementedError, "CELERY_RESULT_BACKEND"):
            jobs.silent.get_result(result.id)
        with self.assertRaises(NotImplementedError):
            result.refresh()


class Signals(unittest.TestCase):
    def test_each_is_sent_once_by_the_backend(self):
        result = ended(jobs.add.enqueue(1))
        until(lambda: len(heard(result)) == 3)
        backend = "MiniceleryBackend"
        self.assertEqual(
            sorted(heard(result)),
            [
                ["enqueued", backend, "READY", "-"],
                ["finished", backend, "SUCCESSFUL", "-"],
                ["started", backend, "RUNNING", "-"],
            ],
        )

    def test_that_of_a_failure_is_sent_while_the_exception_is_handled(self):
        for job, name in ((jobs.fail, "ValueError"), (jobs.fail_async, "LookupError")):
            result = ended(job.enqueue("x"))
            until(lambda result=result: len(heard(result)) == 3)
            self.assertIn(["finished", "MiniceleryBackend", "FAILED", name], heard(result))


class Declaring(unittest.TestCase):
    def test_the_backend_says_what_it_can(self):
        found = default_task_backend
        can = (
            found.supports_defer,
            found.supports_async_task,
            found.supports_get_result,
            found.supports_priority,
        )
        self.assertEqual(can, (True, True, True, True))
        self.assertEqual(found.alias, "default")

    def test_priorities_are_the_broker_s_own(self):
        def priorities(url, **settings):
            app = Celery("other", broker=url, set_as_current=False, **settings)
            return [broker_priority(app, "celery", priority) for priority in (-100, 0, 100)]

        self.assertEqual(priorities("redis://localhost"), [9, 4, 0])
        self.assertEqual(priorities("amqp://localhost"), [None] * 3)
        self.assertEqual(priorities("amqp://localhost", task_queue_max_priority=10), [0, 5, 10])

    def test_what_is_wrong_with_a_task_is_refused(self):
        naive = datetime(2030, 1, 1)
        for using in (
            {"priority": 101},
            {"priority": -101},
            {"priority": 1.5},
            {"run_after": naive},
            {"queue_name": "?"},
        ):
            with self.subTest(using=using), self.assertRaises(InvalidTask):
                jobs.add.using(**using).enqueue(1)
        with self.assertRaises(InvalidTask):
            task(lambda: None)
        with self.assertRaises(InvalidTask):
            task(takes_context=True)(jobs.plain)
        self.assertEqual(jobs.add.using(queue_name="whatever", backend="any").queue_name, "whatever")

    def test_a_task_that_no_worker_would_find_is_refused(self):
        with self.assertRaisesRegex(InvalidTask, "'project_jobs.plain' is a function"):
            task(jobs.plain).enqueue()

    def test_a_message_can_not_have_another_function_called(self):
        call = {"backend": "default", "priority": 0, "queue_name": "default", "run_after": None,
                "takes_context": False, "enqueued_at": None}  # fmt: skip
        result = project_app.app.send_task("minicelery.django.run", ("os.getcwd", [], {}, call))
        with self.assertRaisesRegex(InvalidTask, "no task"):
            result.get(timeout=40)

    @unittest.skipIf(VERSION < (6, 1), "Django 6.0 has no @task(max_retries=…)")
    def test_own_options_are_checked(self):
        for options in ({"max_retries": -1}, {"time_limit": 0}, {"retry_backoff": "fast"}):
            (name,) = options
            with self.subTest(options), self.assertRaisesRegex(InvalidTask, name):
                task(**options)(jobs.plain)

    def test_options_of_the_backend_are_checked(self):
        for options, said in (
            ({"enqueue_on_comit": True}, "did you mean 'enqueue_on_commit'"),
            ({"enqueue_on_commit": "yes"}, "expected True or False"),
        ):
            changed = override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}})
            with changed, self.assertRaisesRegex(ImproperlyConfigured, said):
                _ = task_backends["default"]

    def test_checks_name_what_can_not_work(self):
        self.assertEqual(checks.run_checks(), [])
        with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": {"app": "nothing:app"}}}):
            (error,) = checks.run_checks()
            self.assertEqual(error.id, "minicelery.E101")
            self.assertIn("'nothing:app'", error.msg)
        with modify_settings(INSTALLED_APPS={"remove": "minicelery.contrib.django"}):
            self.assertEqual([one.id for one in checks.run_checks()], ["minicelery.W104"] * 4)
        project_app.app.conf.task_create_missing_queues = False
        try:
            self.assertEqual(
                [(error.id, "CELERY_TASK_QUEUES" in error.hint) for error in checks.run_checks()],
                [("minicelery.E103", True)] * 2,
            )
        finally:
            project_app.app.conf.task_create_missing_queues = True


if __name__ == "__main__":
    unittest.main(verbosity=2)
