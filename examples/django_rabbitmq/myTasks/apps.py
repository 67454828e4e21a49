from django.apps import AppConfig


class MytasksConfig(AppConfig):
    default_auto_field = 'django.db.models.BigAutoField'
    name = 'myTasks'
