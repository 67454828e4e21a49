"""Result stores as people have written them for Celery; what they keep is in this process."""

from __future__ import annotations

import json
from typing import Any

from minicelery.alias.backends import BaseDictBackend
from minicelery.alias.keyed import KeyValueStoreBackend


class Shelf(KeyValueStoreBackend):
    """Documents by their keys."""

    kept: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        return self.kept.get(key)

    def mget(self, keys: Any) -> Any:
        return [self.kept.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        self.kept[key] = value

    def delete(self, key: Any) -> None:
        self.kept.pop(key, None)


class OneByOne(Shelf):
    """Without `mget`, and with keys that are text."""

    key_t = str

    def mget(self, keys: Any) -> Any:
        raise NotImplementedError


class Rows(BaseDictBackend):
    """Columns, as a database has them."""

    rows: dict[str, str] = {}
    groups: dict[str, Any] = {}
    fails = 0

    def _store_result(
        self, task_id: str, result: Any, status: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        if result == "too much":
            raise ValueError("value too long")
        if Rows.fails:
            Rows.fails -= 1
            raise ConnectionResetError("the server went away")
        self.rows[task_id] = json.dumps(
            {
                "status": status, "result": result, "traceback": traceback,
                "task_name": getattr(request, "task", None), "children": self.current_task_children(request),
                "date_done": getattr(request, "document", {}).get("date_done"),
            }
        )  # fmt: skip
        return result

    def _get_task_meta_for(self, task_id: str) -> Any:
        found = self.rows.get(task_id)
        meta = json.loads(found) if found else {"status": "PENDING", "result": None}
        return self.meta_from_decoded({**meta, "task_id": task_id})

    def _forget(self, task_id: str) -> None:
        self.rows.pop(task_id, None)

    def _save_group(self, group_id: str, result: Any) -> Any:
        self.groups[group_id] = result
        return result

    def _restore_group(self, group_id: str) -> Any:
        return {"result": self.groups[group_id]} if group_id in self.groups else None

    def _delete_group(self, group_id: str) -> None:
        self.groups.pop(group_id, None)


class NoGroups(BaseDictBackend):
    """Without them."""


class NotAStore:
    """Anything else."""
