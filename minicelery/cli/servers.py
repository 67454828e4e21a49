"""What a server's own settings mean for the queues and results in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from minicelery.exceptions import MiniCeleryError

Said = tuple[str, str, str]
"""Level, text, and what to do."""

SKEW = 1.0
"""Seconds that clocks may differ."""
OLD_REDIS = (6, 2)
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"})


def examine_server(server: Any) -> Iterator[Said]:
    """What is doubtful about a broker's or a store's server; nothing where it can't be asked."""
    scheme = str(server.url).partition(":")[0].partition("+")[0]
    if scheme in ("redis", "rediss", "valkey"):
        yield from _redis(server)
    elif scheme == "sqlite":
        yield from _sqlite(server.file.path)


def _redis(server: Any) -> Iterator[Said]:
    pool = server.pool
    deadline = time.monotonic() + 5.0

    def ask(*command: str) -> Any:
        return pool.call(deadline, lambda link: link.call(*command))

    try:
        seconds, microseconds = ask("TIME")
        skew = int(seconds) + int(microseconds) / 1e6 - time.time()
        info = _info(ask("INFO"))
    except (MiniCeleryError, OSError, ValueError):
        return
    except Exception as error:  # a server that forbids the command, in redis-py's own words
        yield "note", f"the server does not tell about itself: {error}", ""
        return
    if abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        yield "warning", f"its clock is {abs(skew):.1f} s {way} this machine's", "run an NTP client on both"
    version = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2] if part.isdigit())
    if version < OLD_REDIS:
        yield "error", f"Redis {info.get('redis_version')} is too old", "6.2 is the oldest that works"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        yield (
            "error", f"maxmemory-policy is {policy}: when memory is full, tasks and results are thrown away",
            "CONFIG SET maxmemory-policy noeviction",
        )  # fmt: skip
    elif policy != "noeviction":
        yield (
            "note", f"maxmemory-policy is {policy}; once maxmemory is set too, tasks would be thrown away",
            "CONFIG SET maxmemory-policy noeviction",
        )  # fmt: skip
    if info.get("role") == "slave":
        yield "error", "the server is a replica, and can't be written to", "name its master"
    try:
        saves = ask("CONFIG", "GET", "save")[1]
    except Exception:  # as above
        saves = b"?"
    if info.get("aof_enabled") == "0" and not saves:
        yield (
            "warning", "nothing is written to disk: a restart loses all messages and results",
            "CONFIG SET appendonly yes",
        )  # fmt: skip


def _info(answer: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def _sqlite(path: str) -> Iterator[Said]:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK):
        yield "error", f"{folder} can't be written to: SQLite needs files beside its own", "change its owner"
    if (kind := _file_system(folder)) in NETWORK:
        yield (
            "error", f"{path} is on a network file system ({kind}), where its locks do not hold",
            "put it on a local disk, or use Redis or RabbitMQ",
        )  # fmt: skip


def _file_system(folder: str) -> str:
    """The kind of file system that a folder is on; empty where the system does not tell."""
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            for line in mounts:
                _, place, found, *_ = line.split()
                if (folder == place or folder.startswith(place.rstrip("/") + "/")) and len(place) >= len(
                    best
                ):
                    best, kind = place, found
    except OSError:
        return ""
    return kind
