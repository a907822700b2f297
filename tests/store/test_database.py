import json
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinydb import TinyDB

from llmsvc.chat.sessions import Sessions, message
from llmsvc.errors import BadRequest, LlmsvcError, NotFound, StorageError
from llmsvc.store.database import Database
from llmsvc.store.storage import AtomicJSONStorage


def test_stock_tinydb_reads_every_file(tmp_path: Path) -> None:
    database = Database(tmp_path)
    sessions = Sessions(database, "a/b")
    made = sessions.create("local", "Stock")
    database.add_message(made["id"], message("user", "Hello \ud800 世界", "t"))
    database.set_setting("sampling", {"temperature": 0})
    database.close()
    with TinyDB(tmp_path / "index.json") as index:
        assert [r["title"] for r in index.table("sessions")] == ["Stock"]
        assert index.table("settings").all()[0]["values"] == {"temperature": 0}
    (file,) = (tmp_path / "sessions").glob("*/*.json")
    with TinyDB(file) as session:
        assert session.table("messages").all()[0]["content"] == "Hello \ud800 世界"


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with pytest.raises(StorageError, match=r"in use by process \d+"):
        Database(tmp_path)
    database.close()
    Database(tmp_path).close()


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    storage = AtomicJSONStorage(tmp_path / "x.json")
    storage.write({"t": {"1": {"a": 1}}})
    with pytest.raises(TypeError):
        storage.write({"t": {"1": {"a": {1, 2}}}})
    (tmp_path / "x.tmp").mkdir()  # the file cannot be opened: an OSError of the disk
    with pytest.raises(StorageError, match=r"x\.json"):
        storage.write({"t": {}})
    assert storage.read() == {"t": {"1": {"a": 1}}}
    assert json.loads((tmp_path / "x.json").read_text()) == {"t": {"1": {"a": 1}}}


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"t": {')
    with pytest.raises(StorageError, match=r"x\.json is damaged"):
        AtomicJSONStorage(tmp_path / "x.json").read()
    assert (tmp_path / "x.json").read_text() == '{"t": {'


def test_owners_do_not_see_each_other(tmp_path: Path) -> None:
    database = Database(tmp_path)
    sessions = Sessions(database, "a/b")
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
        Sessions(database, "a/b").import_("local", text)


def test_ids_from_outside_never_become_paths(tmp_path: Path) -> None:
    database = Database(tmp_path / "data")
    for hostile in ("../../etc/passwd", "0" * 31, "0" * 32 + "\n", "..", "A" * 32):
        with pytest.raises(LlmsvcError):
            database.messages(hostile)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    database.close()
