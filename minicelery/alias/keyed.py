"""Result stores written for Celery that keep documents by their keys: `KeyValueStoreBackend`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from minicelery import states
from minicelery.alias.backends import PENDING, Backend, SyncBackendMixin
from minicelery.result import result_from_tuple


class BaseKeyValueStoreBackend(Backend):
    """Keeps documents by their keys: a subclass has `get`, `set`, `delete` and, best, `mget`."""

    task_keyprefix: Any = "celery-task-meta-"
    group_keyprefix: Any = "celery-taskset-meta-"
    chord_keyprefix: Any = "chord-unlock-"
    implements_incr = False

    @staticmethod
    def key_t(key: Any) -> Any:
        """A key, or a part of one, as the store takes it: bytes."""
        return key.encode() if isinstance(key, str) else key

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        before = self.app.conf.result_backend_transport_options.get("global_keyprefix") or ""
        if before and before[-1] not in ":_-.":
            before += "_"
        for name in ("task_keyprefix", "group_keyprefix", "chord_keyprefix"):
            setattr(self, name, self._key(before) + self._key(getattr(self, name)))

    def get(self, key: Any) -> Any:
        """The document of that key; None where there is none."""
        raise NotImplementedError("Must implement the get method.")

    def mget(self, keys: Any) -> Any:
        """The documents of those keys: in their order, or a mapping."""
        raise NotImplementedError("Does not support get_many")

    def set(self, key: Any, value: Any) -> Any:
        """Keep a document."""
        raise NotImplementedError("Must implement the set method.")

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        return self.set(key, value)

    def delete(self, key: Any) -> Any:
        """Drop a document."""
        raise NotImplementedError("Must implement the delete method")

    def incr(self, key: Any) -> Any:
        """Not asked for: chords are refused."""
        raise NotImplementedError("Does not implement incr")

    def expire(self, key: Any, value: Any) -> Any:
        """Nothing."""

    def get_key_for_task(self, task_id: Any, key: Any = "") -> Any:
        """The key of a task's document."""
        return self._get_key_for(self.task_keyprefix, task_id, key)

    def get_key_for_group(self, group_id: Any, key: Any = "") -> Any:
        """The key of a group's document."""
        return self._get_key_for(self.group_keyprefix, group_id, key)

    def get_key_for_chord(self, group_id: Any, key: Any = "") -> Any:
        """The key of a chord's counter."""
        return self._get_key_for(self.chord_keyprefix, group_id, key)

    def _get_key_for(self, prefix: Any, id: Any, key: Any = "") -> Any:
        if not id:
            raise ValueError(f"an id must not be empty. Got {id!r} instead.")
        return prefix + self._key(str(id) if isinstance(id, UUID) else id) + self._key(key)

    def _key(self, part: Any) -> Any:
        # A class may have a plain function, such as `str` or kombu's, as its `key_t`.
        make = getattr(self.key_t, "__func__", self.key_t)
        return make(part)

    def get_many(self, task_ids: Iterable[Any], **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Each task's id, with all that is kept of it, of those that have ended."""
        for id, meta in self.metas_of(list(task_ids)).items():
            if meta["status"] in states.READY_STATES:
                yield id, meta

    def metas_of(self, ids: list[Any]) -> dict[Any, Any]:
        """All that is kept of some tasks, in one trip where the store can."""
        keys = [self.get_key_for_task(id) for id in ids]
        try:
            found = self.mget(keys)
        except NotImplementedError:
            return {id: self._get_task_meta_for(id) for id in ids}
        if isinstance(found, Mapping):
            found = [found.get(key) for key in keys]
        pairs = zip(ids, found, strict=True)
        return {id: self.decode_result(value) for id, value in pairs if value}

    def _forget(self, task_id: str) -> None:
        self.delete(self.get_key_for_task(task_id))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        if self._get_task_meta_for(task_id)["status"] != states.SUCCESS:
            self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result

    def _get_task_meta_for(self, task_id: str) -> Any:
        found = self.get(self.get_key_for_task(task_id))
        return self.decode_result(found) if found else dict(PENDING)

    def _save_group(self, group_id: str, result: Any) -> Any:
        document = self.encode({"result": result.as_tuple()})
        self._set_with_state(self.get_key_for_group(group_id), document, states.SUCCESS)
        return result

    def _restore_group(self, group_id: str) -> Any:
        if not (found := self.get(self.get_key_for_group(group_id))):
            return None
        meta = self.decode(found)
        meta["result"] = result_from_tuple(meta["result"], self.app)
        return meta

    def _delete_group(self, group_id: str) -> Any:
        self.delete(self.get_key_for_group(group_id))


class KeyValueStoreBackend(BaseKeyValueStoreBackend, SyncBackendMixin):
    """Keeps documents by their keys."""
