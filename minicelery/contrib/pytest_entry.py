"""What pytest loads wherever minicelery is installed: it brings the fixtures, unless others have their names.

A project that tests with Celery's plugin, or with pytest-celery, must not find other
fixtures there because some package depends on minicelery.
"""

from __future__ import annotations

import importlib

import pytest

FIXTURES = "minicelery.contrib.pytest"
OTHERS = ("celery", "celery.contrib.pytest")
"""Plugins with fixtures of the same names, as pytest knows them; the first is pytest-celery's."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures, where no other plugin has them and nobody has named ours or left it out."""
    plugins = config.pluginmanager
    if plugins.has_plugin(FIXTURES) or _other(config) is not None:
        return
    plugins.register(importlib.import_module(FIXTURES), FIXTURES)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say whose fixtures they are, where that could be mistaken."""
    other = _other(config)
    if other is None or config.pluginmanager.has_plugin(FIXTURES):
        return None
    return (
        f"minicelery: the fixtures celery_app, … are those of the plugin {other}; "
        f"-p no:{other} gives minicelery's"
    )


def _other(config: pytest.Config) -> str | None:
    return next((name for name in OTHERS if config.pluginmanager.has_plugin(name)), None)
