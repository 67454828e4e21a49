"""The import path that Celery's users know: `minicelery.utils.log`."""
