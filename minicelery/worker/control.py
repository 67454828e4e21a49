"""Celery's place for what makes a function a remote command; see `minicelery.remote`."""

from __future__ import annotations

from minicelery.remote import steering
from minicelery.remote.registry import Panel, control_command, inspect_command

__all__ = ["Panel", "control_command", "inspect_command", "steering"]
