"""minicelery in Django: an app for `INSTALLED_APPS`, and what every `Celery` does in a Django project.

``INSTALLED_APPS += ["minicelery.contrib.django"]`` alone makes an app of the `CELERY_…` settings.
"""
