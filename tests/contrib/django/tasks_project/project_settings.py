"""A Django 6 project whose tasks minicelery runs."""

import os

SECRET_KEY = "of a test"
USE_TZ = True
TIME_ZONE = "Europe/Madrid"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["PROJECT_DB"]}}
INSTALLED_APPS = ["minicelery.contrib.django"]
CELERY_BROKER_URL = os.environ["BROKER_URL"]
CELERY_RESULT_BACKEND = os.environ["RESULT_URL"]
_BACKEND = "minicelery.contrib.django.tasks.MiniceleryBackend"
TASKS = {
    "default": {"BACKEND": _BACKEND, "QUEUES": ["default", "mail", "unserved"]},
    "any": {"BACKEND": _BACKEND, "QUEUES": []},
    "commit": {"BACKEND": _BACKEND, "OPTIONS": {"enqueue_on_commit": True}},
    "named": {"BACKEND": _BACKEND, "OPTIONS": {"app": "project_app:silent"}},
}
