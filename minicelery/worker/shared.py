"""Values in memory that several processes share; one of them writes, any may read."""

from __future__ import annotations

import marshal
import mmap
import struct
import zlib
from typing import Any

_LENGTH = struct.Struct("=I")
_CHECKED = struct.Struct("=I I")  # length and checksum


class Sheet:
    """One value in shared memory, in two halves: one is read while the other is written.

    One process writes, any may read.
    """

    def __init__(self, memory: mmap.mmap, offset: int, size: int) -> None:
        self._memory = memory
        self._offset = offset
        self._size = size

    @staticmethod
    def room(size: int) -> int:
        """The bytes that a sheet for values of `size` bytes takes."""
        return 1 + 2 * (_CHECKED.size + size)

    def write(self, data: bytes) -> bool:
        """Replace what is there by what `marshal` has packed; False if it is too large."""
        if len(data) > self._size:
            return False
        half = self._memory[self._offset] ^ 1
        start = self._half(half)
        _CHECKED.pack_into(self._memory, start, len(data), zlib.crc32(data))
        start += _CHECKED.size
        self._memory[start : start + len(data)] = data
        self._memory[self._offset] = half
        return True

    def read(self) -> Any:
        """The value; None where there is none."""
        for _ in range(10):
            start = self._half(self._memory[self._offset])
            length, check = _CHECKED.unpack_from(self._memory, start)
            start += _CHECKED.size
            data = self._memory[start : start + min(length, self._size)]
            if zlib.crc32(data) == check:  # else it has been written over meanwhile
                return marshal.loads(data) if data else None
        return None

    def _half(self, half: int) -> int:
        return self._offset + 1 + (half & 1) * (_CHECKED.size + self._size)


class Ring:
    """Entries in shared memory: two halves, of which the older is dropped when the newer is full.

    One process writes, any may read: what is being dropped is read as an end.
    """

    def __init__(self, memory: mmap.mmap, offset: int, size: int) -> None:
        self._memory = memory
        self._offset = offset
        self._half = size // 2

    def add(self, data: bytes) -> bool:
        """Keep what `marshal` has packed; False if it is larger than a half."""
        need = _CHECKED.size + len(data)
        if need + 2 * _LENGTH.size > self._half:
            return False
        newer = self._newer()
        base, end = self._place(newer)
        if end + need > self._half:
            newer ^= 1
            base, _ = self._place(newer)
            end = 2 * _LENGTH.size
            _LENGTH.pack_into(self._memory, base, end)
            self._memory[self._offset + _LENGTH.size] = newer
        at = base + end
        self._memory[at : at + need] = _CHECKED.pack(len(data), zlib.crc32(data)) + data
        _LENGTH.pack_into(self._memory, base, end + need)
        return True

    def entries(self) -> list[Any]:
        """What is kept, the oldest first."""
        found = []
        newer = self._newer()
        for half in (newer ^ 1, newer):
            base, end = self._place(half)
            at = 2 * _LENGTH.size
            while at + _CHECKED.size <= end:
                length, check = _CHECKED.unpack_from(self._memory, base + at)
                at += _CHECKED.size
                data = self._memory[base + at : base + at + length] if length <= end - at else b""
                if zlib.crc32(data) != check:  # it is being written over
                    break
                found.append(marshal.loads(data))
                at += length
        return found

    def clear(self) -> None:
        """Drop everything."""
        for half in (0, 1):
            _LENGTH.pack_into(self._memory, self._offset + half * self._half, 0)

    def _newer(self) -> int:
        return self._memory[self._offset + _LENGTH.size] & 1

    def _place(self, half: int) -> tuple[int, int]:
        """Where a half begins, and where its entries end; which one is newer stands in the first."""
        base = self._offset + half * self._half
        (end,) = _LENGTH.unpack_from(self._memory, base)
        return base, min(max(end, 2 * _LENGTH.size), self._half)
