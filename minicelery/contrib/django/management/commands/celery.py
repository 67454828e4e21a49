"""`manage.py celery`: another name of `manage.py minicelery`."""

from minicelery.contrib.django.management.commands.minicelery import Command

__all__ = ["Command"]
