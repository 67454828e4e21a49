"""Programs that run under Celery and under minicelery, and print or note what happened."""
