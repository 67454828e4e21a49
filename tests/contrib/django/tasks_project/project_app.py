"""Its apps: the current one, and one without a result store."""

import os

from minicelery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project_settings")
silent = Celery("silent", broker="memory://silent", set_as_current=False)
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.conf.update(include=["project_jobs"])
