"""What the store costs: an append against a bare append and fdatasync, and 10,000 sessions.

Prints a table and writes ``bench/results/store.json``. The ratios are of interleaved rounds in one run.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import write_results
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.transfer import message, new_id
from llmsvc.files.files import Files
from llmsvc.files.limits import Limits
from llmsvc.store.database import Database, session_path
from llmsvc.store.storage import JournalDB, replace, snapshot

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 300


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def append_ratio(folder: Path, stored: int) -> tuple[float, float]:
    """(median ms of our append, its ratio to the bare one) behind ``stored`` messages of 1 KB."""
    path = folder / f"{stored}.json"
    rows = {str(n): message("user", "x" * 1000, "t") for n in range(1, stored + 1)}
    replace(path, snapshot({"messages": rows}, 0))
    database = JournalDB(path)
    table, bare = database.table("messages"), os.open(folder / f"{stored}.bare", os.O_RDWR | os.O_CREAT)
    row = message("user", "x" * 1000, "t")
    line = json.dumps(row).encode()
    table.insert(row)
    ours, floor = [], []
    for number in range(ROUNDS):
        ours.append(timed(lambda: table.insert(row)))
        floor.append(timed(lambda n=number: (os.pwrite(bare, line, n * len(line)), os.fdatasync(bare))))  # type: ignore[misc]
    database.close()
    os.close(bare)
    return statistics.median(ours) * 1e3, statistics.median(ours) / statistics.median(floor)


def many_sessions(data: Path, count: int = 10_000) -> dict[str, float]:
    words = [f"w{n}" for n in range(20_000)]
    rng = random.Random(0)
    with_words = {}
    index = {}
    for number in range(1, count + 1):
        id_ = new_id()
        index[str(number)] = {
            "id": id_,
            "owner": "local",
            "title": " ".join(rng.choices(words, k=5)),
            "created_at": number,
            "updated_at": number,
            "model": "a/b",
            "turns": 4,
            "undo_until": None,
            "running": None,
        }
        with_words[id_] = {str(n): message("user", " ".join(rng.choices(words, k=80)), "t") for n in range(1, 9)}
    data.mkdir()
    replace(data / "index.json", snapshot({"sessions": index}, 0))
    for id_, messages in with_words.items():
        path = session_path(data, id_)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(snapshot({"messages": messages}, 0))
    Database(data).close()
    start = time.perf_counter()
    database = Database(data)
    results = {"10,000 sessions: open the store, ms": (time.perf_counter() - start) * 1e3}
    sessions = Sessions(database, "a/b", Files(database, Limits()))
    newest = [timed(lambda: sessions.list("local", limit=50)) for _ in range(20)]
    results["10,000 sessions: list the newest 50, ms"] = statistics.median(newest) * 1e3
    for name, query in (("a word", "w1234 "), ("no match", "nowhere to be found")):
        found = [timed(lambda q=query: sessions.list("local", q)) for _ in range(5)]  # type: ignore[misc]
        results[f"10,000 sessions: search for {name}, ms"] = statistics.median(found) * 1e3
    database.close()
    return results


def main() -> None:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        for stored in (10, 100_000):
            ms, ratio = append_ratio(Path(folder), stored)
            results[f"append of 1 KB behind {stored:,} messages, ms"] = ms
            results[f"  against a bare append and fdatasync, x ({stored:,})"] = ratio
        results |= many_sessions(Path(folder) / "data")
    for name, value in results.items():
        print(f"{name:56} {value:8.2f}")
    write_results("store", results)


if __name__ == "__main__":
    main()
