"""One file as broker and result store: several processes of one machine, no server.

``sqlite:///relative.db`` or ``sqlite:////absolute.db``.  A commit survives the death of
any process; a loss of power may take the last few with it (WAL, ``synchronous=NORMAL``).
"""

from minicelery.broker.sqlite.backend import SQLiteBackend
from minicelery.broker.sqlite.broker import SQLiteBroker

__all__ = ["SQLiteBackend", "SQLiteBroker"]
