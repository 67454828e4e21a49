"""For `conf["imports"]`: children wait long for siblings to be idle, and for what runs alone to end."""

from __future__ import annotations

from minicelery.worker import keeper, suspects

keeper.STUCK = 3600.0
suspects.ALONE = 10.0
