"""Queues and results inside one process: for tests, examples, and as the protocols' reference.

``memory://name`` shares one store by name between everything in the process;
``memory://`` is the store without a name.  Nothing survives the process.
"""

from __future__ import annotations

from minicelery.broker.memory.backend import MemoryBackend
from minicelery.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBackend", "MemoryBroker"]
