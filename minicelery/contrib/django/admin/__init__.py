"""The pages of results, and of what beat sends, in Django's admin."""

from minicelery.contrib.django.admin.results import GroupResultAdmin, TaskResultAdmin
from minicelery.contrib.django.admin.schedule import CrontabAdmin, PeriodicTaskAdmin, ScheduleAdmin

__all__ = ["CrontabAdmin", "GroupResultAdmin", "PeriodicTaskAdmin", "ScheduleAdmin", "TaskResultAdmin"]
