"""The records of a journal: one line per commit, ``crc32 length payload``, the numbers in 8 hex digits.

The payload is ASCII JSON ``{"n": sequence, "o": [[table, id, document or null], …]}``; an operation with a null id
makes a table (document ``{}``) or drops it (null). Operations are absolute, so replaying them twice is harmless.
"""

import json
import re
from dataclasses import dataclass
from typing import Any
from zlib import crc32

Operation = tuple[str, str | None, dict[str, Any] | None]

_LINE = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) (\{[\x20-\x7e]*\})")  # strict: int(x, 16) would take " 1f"


class Damaged(Exception):
    """A record that was acknowledged cannot be read."""


@dataclass(frozen=True)
class Replay:
    """What a journal says: ``records`` in order, the first ``good`` bytes of it, and how many records are ``lost``."""

    records: list[tuple[int, list[Operation]]]
    good: int
    lost: int


def encode(sequence: int, operations: list[Operation]) -> bytes:
    """Raises TypeError or ValueError for what JSON cannot hold."""
    payload = json.dumps({"n": sequence, "o": operations}, separators=(",", ":")).encode("ascii")
    body = b"%08x %s" % (len(payload), payload)
    return b"%08x %s\n" % (crc32(body), body)


def replay(data: bytes, *, salvage: bool = False) -> Replay:
    """Read a journal.

    A bad end is a torn write that nobody was told of, and is left out. A bad record before a good one was
    acknowledged: Damaged is raised, or with ``salvage`` it is counted and skipped.
    """
    records: list[tuple[int, list[Operation]]] = []
    good, lost, start = 0, 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        record = None if end < 0 else _decode(data[start:end])
        if record is None:
            if not _later(data, start):
                break
            if not salvage:
                raise Damaged(f"the record at byte {start:,} is damaged")
            lost += 1
        else:
            records.append(record)
        start = good = end + 1
    return Replay(records, good, lost)


def _later(data: bytes, start: int) -> bool:
    """Whether a good record follows the bad one at ``start``."""
    while (newline := data.find(b"\n", start)) >= 0:
        start = newline + 1
        if _decode(data[start : end if (end := data.find(b"\n", start)) >= 0 else len(data)]) is not None:
            return True
    return False


def _decode(line: bytes) -> tuple[int, list[Operation]] | None:
    frame = _LINE.fullmatch(line)
    if frame is None or int(frame[2], 16) != len(frame[3]) or int(frame[1], 16) != crc32(line[9:]):
        return None
    payload = json.loads(frame[3])
    return payload["n"], [(table, id_, document) for table, id_, document in payload["o"]]
