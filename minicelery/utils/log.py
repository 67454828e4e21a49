"""Loggers for task modules."""

from __future__ import annotations

import logging

__all__ = ["get_logger", "get_task_logger", "task_logger"]

task_logger = logging.getLogger("minicelery.task")
"""The parent of every logger that `get_task_logger` returns."""


def get_logger(name: str) -> logging.Logger:
    """The logger `name`, as `logging.getLogger` returns it."""
    return logging.getLogger(name)


def get_task_logger(name: str) -> logging.Logger:
    """The logger `name`, whose lines carry the running task's name and id in a worker.

    Raises ValueError for the name of one of minicelery's own loggers.
    """
    if name == "minicelery" or name.startswith("minicelery."):
        raise ValueError(f"{name!r} is a logger of minicelery's own; use get_task_logger(__name__)")
    logger = logging.getLogger(name)
    if logger.parent is logging.root:
        logger.parent = task_logger
    return logger
