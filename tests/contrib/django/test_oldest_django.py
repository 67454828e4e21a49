"""Results, transactions and the admin with the oldest Django that is served: their tests, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contrib.django.venvs import python_with, run_tests

FOLDER = Path(__file__).parent


@pytest.mark.timeout(400)  # the first run makes the virtual environment
def test_results_transactions_and_the_admin_do_as_with_the_newer_ones() -> None:
    python = python_with("4.2", "3.11", "3.12")
    files = ("test_results.py", "test_transactions.py", "test_admin.py")
    run_tests(python, *(str(FOLDER / name) for name in files))
