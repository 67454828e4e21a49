"""A virtual environment with django-celery-results and django-celery-beat, and neither Celery nor kombu."""

from __future__ import annotations

import sys

from tests.contrib.django.venvs import NEEDED, kept

DJANGO = "5.2"
ALONE = ("django-celery-results==2.6.*", "django-celery-beat==2.9.*")
BESIDE = ("django-timezone-field>=5.0", "python-crontab>=2.3.4", "cron-descriptor<2.0.0,>=1.2.32", "tzdata")
"""What the two depend on besides Celery."""


def python() -> str:
    """Its interpreter.  The first run of the tests makes it, which may take a minute or two."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = [f"django=={DJANGO}.*", *BESIDE, *NEEDED]
    return kept(sys.executable, f"python{version}-packages", wanted, ALONE)
