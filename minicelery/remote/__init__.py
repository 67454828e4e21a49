"""Remote control: what asks running workers, and what the commands are; `worker.remote` answers."""

from __future__ import annotations

from minicelery.remote.client import Control, flatten_reply
from minicelery.remote.inspecting import Inspect
from minicelery.remote.registry import Panel, control_command, inspect_command

__all__ = ["Control", "Inspect", "Panel", "control_command", "flatten_reply", "inspect_command"]
