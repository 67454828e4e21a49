"""A Django project whose schedule is in its database."""

import os

SECRET_KEY = "of a test"
USE_TZ = os.environ.get("PROJECT_USE_TZ", "1") == "1"
TIME_ZONE = "Europe/Madrid"
ROOT_URLCONF = "tests.contrib.django.schedule_project.urls"
STATIC_URL = "static/"
ALLOWED_HOSTS = ["testserver"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # quick
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "minicelery.contrib.django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["PROJECT_DB"],
        "CONN_MAX_AGE": None,
        "OPTIONS": {"timeout": 20},
    }
}
CELERY_BROKER_URL = os.environ.get("BROKER_URL", "memory://schedule")
CELERY_BEAT_SCHEDULER = "django"
