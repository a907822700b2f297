"""The journal: nothing acknowledged is lost, nothing damaged goes unnoticed."""

import copy
import errno
import os
import random
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power import NoFolderSync, NoSync, RecordingDisk, left_over
from tinydb import TinyDB, where
from tinydb.operations import increment
from tinydb.storages import MemoryStorage
from tinydb.table import Document

from llmsvc.errors import StorageError
from llmsvc.store.disk import Disk
from llmsvc.store.storage import JournalDB, JournalStorage


def filled(path: Path) -> list[dict[str, Any]]:
    """Leave a database that was never closed; return its tables after each commit."""
    storage = JournalStorage(path)
    states = [{}]
    for number in range(8):
        storage.commit([("t", str(number % 5), {"text": "é\n" * number, "n": number})])
        states.append(copy.deepcopy(storage.read()))
    storage.commit([("t", "2", None)])
    states.append(copy.deepcopy(storage.read()))
    return states


def opened(path: Path) -> dict[str, Any] | str:
    """The tables, or the sentence."""
    try:
        return JournalStorage(path).read()
    except StorageError as error:
        return str(error)


def test_a_journal_cut_anywhere_is_an_exact_prefix(tmp_path: Path) -> None:
    states = filled(tmp_path / "x.json")
    journal = (tmp_path / "x.json.journal").read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(journal) if byte == 10)]
    for size in range(len(journal) + 1):
        (tmp_path / "y.json.journal").write_bytes(journal[:size])
        whole = sum(end <= size for end in ends) - 1
        storage = JournalStorage(tmp_path / "y.json")
        assert storage.read() == states[whole]
        storage.commit([("t", "9", {"after": True})])  # and goes on from there
        assert JournalStorage(tmp_path / "y.json").read()["t"]["9"] == {"after": True}
        (tmp_path / "y.json.journal").unlink()


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_never_a_silent_wrong_answer(tmp_path: Path, bit: int) -> None:
    states = filled(tmp_path / "x.json")
    journal = (tmp_path / "x.json.journal").read_bytes()
    last = journal.rindex(b"\n", 0, -1) + 1
    loud = 0
    for place in range(len(journal)):
        damaged = bytearray(journal)
        damaged[place] ^= 1 << bit
        (tmp_path / "y.json.journal").write_bytes(damaged)
        answer = opened(tmp_path / "y.json")
        if isinstance(answer, str):
            loud += 1
            assert "y.json.journal is damaged" in answer
            assert (tmp_path / "y.json.journal").read_bytes() == damaged  # nothing was changed
        else:
            assert place >= last - 1  # only the last record can pass for a write that never ended
            assert answer in states[-3:]
    assert loud >= last - 1


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_a_snapshot_is_noticed(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "x.json"
    with JournalDB(path) as database:
        database.table("t").insert({"text": "words é", "n": 1})
        database.insert({"b": [1.5, None, True]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"x\.json"):
            JournalStorage(path)


def run_workload(folder: Path, disk: RecordingDisk, seed: int) -> list[dict[str, Any]]:
    """Random commits, some put off, with flushes, compactions, closings and openings.

    ("ack", n) comes into the trace when the first n of them are promised.
    """
    rng = random.Random(seed)
    states: list[dict[str, Any]] = [{}]
    storage = JournalStorage(folder / "x.json", disk, compact_bytes=700)
    for number in range(50):
        key = str(rng.randrange(6))
        document = None if rng.random() < 0.25 else {"n": number, "text": "x" * rng.randrange(120)}
        later = rng.random() < 0.3
        with storage.putting_off() if later else nullcontext():
            storage.commit([("t", key, document), ("u", "1", {"n": number})])
        states.append(copy.deepcopy(storage.read()))
        if later and rng.random() < 0.3:
            storage.flush()
            later = False
        if closing := rng.random() < 0.12:
            storage.close()
            storage = JournalStorage(folder / "x.json", disk, compact_bytes=700)
            assert storage.read() == states[-1]
        if closing or not later:
            disk.trace.append(("ack", number + 1))
    storage.close()
    disk.trace.append(("ack", 50))
    return states


def bad_disks(folder: Path, disk: RecordingDisk, seed: int, tries: int) -> tuple[int, int]:
    """How many disks after a power failure are wrong, of how many."""
    (folder / "run").mkdir()
    states = run_workload(folder / "run", disk, seed)
    promised = [event[1] for event in disk.trace if event[0] == "ack"]
    bad = total = 0
    for moment in range(len(disk.trace) + 1):
        acknowledged = max((event[1] for event in disk.trace[:moment] if event[0] == "ack"), default=0)
        begun = min((number for number in promised if number > acknowledged), default=acknowledged)
        for attempt in range(tries):
            files = left_over(disk.trace[:moment], random.Random(f"{seed} {moment} {attempt}"))
            for name in ("x.json", "x.json.journal", "x.json.tmp"):
                (folder / name).unlink(missing_ok=True)
            for path, content in files.items():
                (folder / path.name).write_bytes(content)
            total += 1
            try:
                found = JournalStorage(folder / "x.json").read()
            except StorageError:
                bad += 1
                continue
            bad += found not in (states[acknowledged], states[begun])
    return bad, total


def test_power_failure_at_every_disk_call_loses_nothing(tmp_path: Path, crashes: int) -> None:
    total = 0
    for seed in range(max(1, crashes // 20)):
        (tmp_path / str(seed)).mkdir()
        bad, tried = bad_disks(tmp_path / str(seed), RecordingDisk(), seed, tries=4)
        assert bad == 0
        total += tried
    assert total > 500


@pytest.mark.parametrize("mutant", [NoSync, NoFolderSync])
def test_power_failure_catches_a_store_that_does_not_sync(tmp_path: Path, mutant: type[RecordingDisk]) -> None:
    bad, total = bad_disks(tmp_path, mutant(), 0, tries=2)
    assert bad > total // 20


class FullDisk(Disk):
    """Takes ``room`` more bytes, then half of a write and the error of a full disk."""

    room = 10**9

    def write(self, handle: int, data: bytes, offset: int) -> None:
        if len(data) > self.room:
            super().write(handle, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        super().write(handle, data, offset)


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    disk = FullDisk()
    database = JournalDB(tmp_path / "x.json", disk=disk)
    table = database.table("t")
    kept = [table.insert({"n": n}) for n in range(5)]
    disk.room = 40
    with pytest.raises(StorageError, match=r"Not saved: .*x\.json\.journal cannot be written .*Free some disk"):
        table.insert({"text": "x" * 500})
    assert [row["n"] for row in table.all()] == [0, 1, 2, 3, 4]
    disk.room = 10**9
    assert table.insert({"n": 5}) == kept[-1] + 1
    disk.room = 0
    with pytest.raises(StorageError):
        database.close()
    with JournalDB(tmp_path / "x.json") as again:
        assert [row["n"] for row in again.table("t")] == [0, 1, 2, 3, 4, 5]


def test_what_is_put_off_waits_for_room_on_a_full_disk(tmp_path: Path) -> None:
    disk = FullDisk()
    storage = JournalStorage(tmp_path / "x.json", disk)
    disk.room = 0
    for number in range(3):
        with storage.putting_off():
            storage.commit([("t", "1", {"n": number})])
    with pytest.raises(StorageError, match="Free some disk"):
        storage.flush()
    assert storage.read() == {"t": {"1": {"n": 2}}}
    assert JournalStorage(tmp_path / "x.json").read() == {}
    disk.room = 100  # one record, not three
    storage.flush()
    assert JournalStorage(tmp_path / "x.json").read() == {"t": {"1": {"n": 2}}}


class FailingSync(Disk):
    def sync(self, handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_after_a_failed_sync_nothing_more_is_promised(tmp_path: Path) -> None:
    database = JournalDB(tmp_path / "x.json", disk=FailingSync())
    for _ in range(2):
        with pytest.raises(StorageError, match="Not saved"):
            database.insert({"a": 1})
    assert database.all() == []


def test_eight_threads(tmp_path: Path) -> None:
    database = JournalDB(tmp_path / "x.json", compact_bytes=20_000)
    counter = database.table("counter").insert({"n": 0})
    errors: list[Exception] = []

    def work(worker: int) -> None:
        try:
            rng, table = random.Random(worker), database.table("t")
            for step in range(250):
                number = table.insert({"worker": worker, "step": step})
                database.table("counter").update(increment("n"), doc_ids=[counter])
                if rng.random() < 0.3:
                    table.remove(doc_ids=[number])
                if rng.random() < 0.1:
                    table.upsert({"worker": worker, "last": step}, where("worker") == f"upsert {worker}")
                table.get(doc_id=number)
                if step % 50 == 0:
                    table.search(where("worker") == worker)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert database.table("counter").get(doc_id=counter)["n"] == 8 * 250
    rows = database.table("t").all()
    database.close()
    with TinyDB(tmp_path / "x.json") as stock:
        assert stock.table("t").all() == rows


def test_callers_cannot_change_what_is_stored(tmp_path: Path) -> None:
    with JournalDB(tmp_path / "x.json") as database:
        given_row = {"list": [1, {"a": 2}]}
        number = database.insert(given_row)
        given_row["list"].append(3)
        for row in (database.get(doc_id=number), database.all()[0], database.search(where("list").exists())[0]):
            row["list"][1]["a"] = "EVIL"
        assert database.all() == [{"list": [1, {"a": 2}]}]


def test_what_json_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    with JournalDB(tmp_path / "x.json") as database:
        database.insert({"a": 1})
        with pytest.raises(TypeError):
            database.insert_multiple([{"a": 2}, {"a": {1, 2}}])
        with pytest.raises(ZeroDivisionError):
            database.update(lambda row: row.update(a=1 // 0))
        assert database.all() == [{"a": 1}]
        assert database.insert({"a": 3}) == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(st.text(max_size=5), values, max_size=4)
steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "put", "update", "remove", "truncate", "drop", "reopen"]),
        documents,
        st.integers(1, 5),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(steps=steps)
def test_it_behaves_as_stock_tinydb(tmp_path_factory, steps) -> None:
    path = tmp_path_factory.mktemp("same") / "x.json"
    ours, stock = JournalDB(path, compact_bytes=300), TinyDB(storage=MemoryStorage)
    for action, document, number in steps:
        if action == "reopen":
            ours.close()
            ours = JournalDB(path, compact_bytes=300)
            continue
        results = []
        for table in (ours.table("t"), stock.table("t")):
            if action == "insert":
                table._next_id = None  # stock forgets it on reopening
                results.append(table.insert(document))
            elif action == "put":
                results.append(table.upsert(Document(document, number)))
            elif action == "update":
                results.append(table.update(document, doc_ids=[number]))
            elif action == "remove":
                results.append(table.remove(doc_ids=[number]))
            elif action == "truncate":
                results.append(table.truncate())
        if action == "drop":
            ours.drop_table("t")
            stock.drop_table("t")
        assert results[:1] == results[1:]
        same = [(row.doc_id, dict(row)) for row in stock.table("t")]
        assert [(row.doc_id, dict(row)) for row in ours.table("t")] == same
    ours.close()
    if path.exists():
        with TinyDB(path) as reader:
            assert list(reader.table("t")) == list(stock.table("t"))
