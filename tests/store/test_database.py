"""The data directory: what is stored, found again, migrated, searched and repaired."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tinydb import TinyDB

from llmsvc.chat import sessions as sessions_module
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.transfer import message, tree
from llmsvc.errors import BadRequest, LlmsvcError, NotFound, StorageError
from llmsvc.files.files import Files
from llmsvc.files.limits import Limits
from llmsvc.store.database import Database
from llmsvc.store.rows import Rows
from llmsvc.store.shelf import Shelf
from llmsvc.store.storage import JournalDB


def operate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmsvc.store", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def some_chats(folder: Path, count: int = 3) -> list[str]:
    with closing(Database(folder)) as database:
        sessions = Sessions(database, "a/b", Files(database, Limits()))
        made = [sessions.create("local", f"Chat {n}")["id"] for n in range(count)]
        for number, id_ in enumerate(made):
            database.add_messages(id_, tree([message("user", f"Hello {number}", "t"), message("assistant", "Hi", "t")]))
    return made


def test_stock_tinydb_reads_every_file(tmp_path: Path) -> None:
    database = Database(tmp_path)
    sessions = Sessions(database, "a/b", Files(database, Limits()))
    made = sessions.create("local", "Stock")
    database.add_messages(made["id"], [message("user", "Hello \ud800 世界", "t")])
    database.set_setting("sampling", {"temperature": 0})
    database.close()
    with TinyDB(tmp_path / "index.json") as index:
        assert [r["title"] for r in index.table("sessions")] == ["Stock"]
        assert index.table("settings").all()[0]["values"] == {"temperature": 0}
    (file,) = (tmp_path / "sessions").glob("*/*")
    with TinyDB(file) as session:
        assert session.table("messages").all()[0]["content"] == "Hello \ud800 世界"


def test_kill_in_mid_write_loses_nothing(tmp_path: Path, crashes: int) -> None:
    rounds = Path(__file__).parent / "crash_rounds.py"
    done = subprocess.run(
        [sys.executable, str(rounds), str(tmp_path), str(crashes)], capture_output=True, text=True, timeout=600
    )
    total = json.loads(done.stdout)
    print(total)
    assert total["acknowledged"] > 5 * crashes
    assert (total["lost"], total["unreadable"], total["returned"]) == (0, 0, 0), done.stderr


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with pytest.raises(StorageError, match=rf"in use by process {os.getpid()}"):
        Database(tmp_path)
    assert f"in use by process {os.getpid()}" in operate("check", str(tmp_path)).stderr
    database.close()
    Database(tmp_path).close()


def test_a_damaged_chat_is_named_and_the_others_work(tmp_path: Path) -> None:
    good, bad, _ = some_chats(tmp_path)
    (file,) = tmp_path.glob(f"sessions/*/{bad}.json")
    file.write_text(file.read_text().replace("Hello 1", "Hullo 1"))
    with closing(Database(tmp_path)) as database:
        sessions = Sessions(database, "a/b", Files(database, Limits()))
        with pytest.raises(StorageError, match=rf"{bad}\.json is damaged.*llmsvc\.store repair"):
            sessions.get("local", bad)
        assert len(sessions.list("local")) == 3
        assert [m["content"] for m in sessions.get("local", good)["messages"]] == ["Hello 0", "Hi"]


def test_check_repair_and_export(tmp_path: Path) -> None:
    data = tmp_path / "data"
    _, bad, _ = some_chats(data)
    assert operate("check", str(data)).stdout.strip().endswith("0 damaged.")
    (file,) = data.glob(f"sessions/*/{bad}.json")
    damaged = file.read_text().replace("Hello 1", "Hullo 1")
    file.write_text(damaged)
    checked = operate("check", str(data))
    assert checked.returncode == 1
    assert f"{bad}.json is damaged" in checked.stdout
    assert checked.stdout.strip().endswith("1 damaged.")
    assert file.read_text() == damaged
    exported = operate("export", str(data), "--to", str(tmp_path / "out"))
    assert exported.stdout.strip().endswith("1 could not be read.")
    repaired = operate("repair", str(data))
    assert repaired.returncode == 0
    assert repaired.stdout.strip().endswith("1 repaired.")
    assert next(file.parent.glob("*.damaged-*")).read_text() == damaged
    assert operate("check", str(data)).returncode == 0
    assert operate("export", str(data), "--to", str(tmp_path / "out")).returncode == 0
    with closing(Database(data)) as database:
        sessions = Sessions(database, "a/b", Files(database, Limits()))
        assert sessions.get("local", bad)["messages"][0]["content"] == "Hullo 1"
        copy = sessions.import_("local", (tmp_path / "out" / f"{bad}.json").read_text())
        assert [m["content"] for m in sessions.get("local", copy["id"])["messages"]] == ["Hullo 1", "Hi"]
    assert operate("check", str(tmp_path / "nowhere")).returncode == 1


def test_a_directory_of_the_first_version_is_brought_over_with_a_backup(tmp_path: Path) -> None:
    """The files that version 0 wrote: plain TinyDB, settings with a ``key``."""
    id_ = "ab" * 16
    row = {"id": id_, "owner": "local", "title": "Old", "created_at": 1.0, "updated_at": 1.0, "model": "a/b"}
    row |= {"turns": 1, "undo_until": None}
    with TinyDB(tmp_path / "index.json") as index:
        index.table("sessions").insert(row)
        index.table("settings").insert({"key": "sampling", "values": {"temperature": 1}})
    (tmp_path / "sessions" / "ab").mkdir(parents=True)
    with TinyDB(tmp_path / "sessions" / "ab" / f"{id_}.json") as session:
        session.table("messages").insert_multiple([flat("user", "Hello"), flat("assistant", "Hi")])
    old = {path.name: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for _ in range(2):
        with closing(Database(tmp_path)) as database:
            found = Sessions(database, "a/b", Files(database, Limits())).get("local", id_)
            assert [m["content"] for m in found["messages"]] == ["Hello", "Hi"]
            assert found["settings"] == {}
            assert database.setting("sampling") == {"temperature": 1}
    kept = (tmp_path / "backups" / "version-0").rglob("*.json")
    assert {path.name: path.read_bytes() for path in kept} == old


def test_a_chat_of_version_1_whose_process_was_killed_is_brought_over(tmp_path: Path) -> None:
    """Its messages and the version itself may be in journals only."""
    database = Database(tmp_path)
    id_ = Sessions(database, "a/b", Files(database, Limits())).create("local")["id"]
    database.add_messages(id_, [flat("user", "Hello"), flat("assistant", "Hi"), flat("user", "More")])
    database.index("meta").put({"id": "version", "version": 1})
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path, killed, ignore=shutil.ignore_patterns("killed", ".lock"))
    database.close()
    with closing(Database(killed)) as database:
        found = Sessions(database, "a/b", Files(database, Limits())).get("local", id_)["messages"]
        assert [m["content"] for m in found] == ["Hello", "Hi", "More"]
        assert found[0]["parent"] == ""
        assert [m["parent"] for m in found[1:]] == [m["id"] for m in found[:2]]
    assert (killed / "backups" / "version-1" / "sessions" / id_[:2]).exists()


def flat(role: str, text: str) -> dict[str, object]:
    """A message as it was before there were branches."""
    row = message(role, text, "t")
    return {name: value for name, value in row.items() if name not in ("parent", "depth", "chosen", "options")}


def test_a_directory_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database:
        database.index("meta").put({"id": "version", "version": 99})
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(StorageError, match=r"newer llmsvc \(format 99\)"):
        Database(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == before


def test_deletion_frees_the_disk_after_the_undo_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Database(tmp_path)) as database:
        sessions = Sessions(database, "a/b", Files(database, Limits()))
        kept, gone = (sessions.create("local")["id"] for _ in range(2))
        for id_ in (kept, gone):
            database.add_messages(id_, [message("user", "x" * 100_000, "t")])
        sessions.delete("local", kept)
        assert sessions.restore("local", kept)["id"] == kept
        assert len(sessions.get("local", kept)["messages"]) == 1
        monkeypatch.setattr(sessions_module, "UNDO_SECONDS", -1)
        sessions.delete("local", gone)
        sessions.purge()
        assert {path.name.split(".")[0] for path in tmp_path.glob("sessions/*/*")} == {kept}
        with pytest.raises(NotFound):
            sessions.restore("local", gone)


def test_search_finds_words_of_open_and_closed_chats(tmp_path: Path) -> None:
    words = ["An AXOLOTL swims", "été à Ørsta", "日本語のテキスト", 'a "quoted" word', "role"]
    with closing(Database(tmp_path)) as database:
        sessions = Sessions(database, "a/b", Files(database, Limits()))
        ids = [sessions.create("local")["id"] for _ in words]
        for id_, text in zip(ids, words, strict=True):
            database.add_messages(id_, [message("user", text, "t")])
    for opened in (False, True):
        with closing(Database(tmp_path)) as database:
            sessions = Sessions(database, "a/b", Files(database, Limits()))
            if opened:
                [sessions.get("local", id_) for id_ in ids]
            for query, number in [("axolotl", 0), ("ÉTÉ À ø", 1), ("本語の", 2), ('"QUOTED" w', 3), ("role", 4)]:
                assert [s["id"] for s in sessions.list("local", query)] == [ids[number]], query
            assert sessions.list("local", "created_at") == []
            assert sessions.list("other", "axolotl") == []


def test_lent_volumes_are_not_closed_and_others_are(tmp_path: Path) -> None:
    shelf = Shelf(JournalDB, capacity=3)
    errors: list[Exception] = []

    def work(worker: int) -> None:
        try:
            for step in range(60):
                with shelf.lend(tmp_path / f"{(worker + step) % 8}.json") as volume:
                    volume.rows("t").add({"id": f"{worker} {step}"})
        except Exception as error:
            errors.append(error)

    with shelf.lend(tmp_path / "kept.json") as volume:
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        volume.rows("t").add({"id": "still open"})
    assert errors == []
    assert len(list(tmp_path.glob("*.journal"))) <= 3
    shelf.close()
    rows = [row["id"] for n in range(8) for row in TinyDB(tmp_path / f"{n}.json").table("t")]
    assert sorted(rows) == sorted(f"{worker} {step}" for worker in range(6) for step in range(60))


def test_rows_are_found_by_id(tmp_path: Path) -> None:
    for _ in range(2):
        with JournalDB(tmp_path / "x.json") as database:
            rows = Rows(database, "t")
            rows.put({"id": "a", "n": 1})
            rows.put({"id": "b", "n": 2})
            rows.put({"id": "a", "n": 3})
            assert rows.get("a") == {"id": "a", "n": 3}
            assert rows.largest("n", 1, lambda _: True, ["id"]) == [{"id": "a"}]
            rows.remove("b")
            assert ("a" in rows, "b" in rows, len(rows), rows.get("b")) == (True, False, 1, None)
            assert not rows.update("b", {"n": 4})


def test_owners_do_not_see_each_other(tmp_path: Path) -> None:
    database = Database(tmp_path)
    sessions = Sessions(database, "a/b", Files(database, Limits()))
    hers = sessions.create("ann", "Hers")["id"]
    assert sessions.list("bob") == []
    with pytest.raises(NotFound) as missing:
        sessions.get("bob", "0" * 32)
    for call in (sessions.get, sessions.row, sessions.delete, sessions.restore, sessions.export):
        with pytest.raises(NotFound) as foreign:
            call("bob", hers)
        assert str(foreign.value) == str(missing.value)
    with pytest.raises(NotFound):
        sessions.rename("bob", hers, "Mine")
    assert sessions.get("ann", hers)["title"] == "Hers"
    database.close()


@given(text=st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_import_of_anything_is_an_answer_or_a_sentence(tmp_path_factory, text: str) -> None:
    database = Database(tmp_path_factory.mktemp("import"))
    with closing(database), suppress(BadRequest):  # any other error fails the test
        Sessions(database, "a/b", Files(database, Limits())).import_("local", text)


def test_ids_from_outside_never_become_paths(tmp_path: Path) -> None:
    database = Database(tmp_path / "data")
    for hostile in ("../../etc/passwd", "0" * 31, "0" * 32 + "\n", "..", "A" * 32):
        with pytest.raises(LlmsvcError):
            database.messages(hostile)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    database.close()
