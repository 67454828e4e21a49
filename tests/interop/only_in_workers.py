"""An exception that no client knows: clients don't import this module."""

from __future__ import annotations


class Unheard(Exception):
    """Known where it is raised and nowhere else."""
