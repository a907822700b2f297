"""Every file ends in a stated state, with its text or a sentence that says what to do. Real files, real processes."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import samples
from clients import until
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsvc.chat.sessions import Sessions
from llmsvc.errors import BadRequest, Conflict, NotFound
from llmsvc.files.files import Files, clean_name
from llmsvc.files.limits import Limits
from llmsvc.files.meaning import Meaning
from llmsvc.store.database import Database

OVER = ("ready", "partial", "needs OCR", "failed")


class Room:
    """The files of one chat."""

    def __init__(self, folder: Path, limits: Limits, meaning: Meaning | None = None) -> None:
        self.folder = folder
        self.database = Database(folder / "data")
        self.files = Files(self.database, limits, meaning)
        self.sessions = Sessions(self.database, "a/b", self.files)
        self.session = self.sessions.create("me")["id"]

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        upload = self.folder / "cache" / os.urandom(8).hex() / "upload"
        upload.parent.mkdir(parents=True)
        upload.write_bytes(content)
        row = self.files.add("me", self.session, name, upload)
        assert not upload.exists()
        return row

    def wait(self, id_: str, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            row = self.files.get("me", self.session, id_)
            return row if wanted(row) else None

        return until(found, pause=0.01)

    def read(self, name: str, content: bytes) -> dict[str, Any]:
        return self.wait(self.add(name, content)["id"], lambda row: row["state"] in OVER)

    def on_disk(self) -> list[str]:
        return [path.name for path in (self.folder / "data" / "files").rglob("*") if path.is_file()]

    def close(self) -> None:
        self.files.close()
        self.database.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    rooms: list[Room] = []

    def build(**limits: Any) -> Room:
        rooms.append(Room(tmp_path / str(len(rooms)), Limits(**limits)))
        return rooms[-1]

    yield build
    for room in rooms:
        room.close()


@pytest.fixture
def room(make: Callable[..., Room]) -> Room:
    return make()


GOOD = {
    "report.pdf": (lambda: samples.pdf(["The harbour freezes.", "A copper lantern."]), "harbour", "lantern"),
    "word.docx": (samples.word, "# Annual report", "| 2031 | 17 million |"),
    "notes.md": (lambda: b"# Plan\n\nBuy *milk*.", "# Plan", "*milk*"),
    "rows.csv": (lambda: b"name;age\nAda;36\nBob|;41\n", "| name | age |", "| Bob\\| | 41 |"),
    "tree.json": (lambda: b'{"a": [1, {"b": "c"}]}', '"a": [', '"b": "c"'),
    "broken.json": (lambda: b'{"a": [1, ', '{"a": [1,', ""),
    "page.html": (
        lambda: (
            b"<html><head><title>T</title><style>x{}</style></head><body><h2>Head</h2><p>One<br>two</p>"
            b"<script>evil()</script><table><tr><th>a</th></tr><tr><td>b</td></tr></table><ul><li>item</li></ul>tail"
        ),
        "# T\n\n## Head\n\nOne\ntwo",
        "| a |\n| --- |\n| b |",
    ),
    "tool.rs": (lambda: b'fn main() { println!("hi"); }\n', "fn main()", "println"),
    "noname": (lambda: b"just words\n", "just words", ""),
    "cyrillic.txt": (lambda: ("Съешь же ещё этих мягких французских булок. " * 9).encode("cp1251"), "булок", "мягких"),
    "greek.txt": (lambda: ("Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. " * 9).encode("cp1253"), "ψυχοφθόρα", ""),
    "japanese.txt": (lambda: ("色は匂へど散りぬるを我が世誰ぞ常ならむ。" * 9).encode("shift_jis"), "散りぬるを", ""),
    "french.txt": (lambda: "Déjà vu à Noël, où ça ?".encode("latin-1"), "Déjà vu à Noël, où ça", ""),
    "wide.txt": (lambda: "wide text éü".encode("utf-16"), "wide text éü", ""),
    "mark.txt": (lambda: "\ufeffwith a mark".encode(), "with a mark", ""),
    "hebrew.txt": (lambda: "שלום עולם, זה טקסט מימין לשמאל".encode(), "עולם", "לשמאל"),
    "arabic.txt": (lambda: ("مرحبا بالعالم هذا نص من اليمين إلى اليسار. " * 5).encode("cp1256"), "بالعالم", ""),
    "cut.txt": (lambda: ("ä" * 99_999 + "x").encode()[:199_999], "äää", ""),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_read_is(room: Room, name: str) -> None:
    content, *expected = GOOD[name]
    row = room.read(name, content())
    assert (row["state"], row["error"]) == ("ready", "")
    for words in expected:
        assert words in row["text"]
    assert "evil()" not in row["text"]
    assert row["characters"] > 0
    assert row["progress"] == 1


def test_a_docx_is_read_in_order_with_all_its_parts(room: Room) -> None:
    text = room.read("a.docx", samples.word())["text"]
    wanted = ["Confidential header", "# Annual report", "Revenue rose sharply in spring.[^1]", "17 million"]
    wanted += ["After the table.", "Printed footer", "[^1]: Audited by Ada."]
    places = [text.index(words) for words in wanted]
    assert places == sorted(places)
    assert "hardly" not in text


def test_columns_are_read_one_after_the_other(room: Room) -> None:
    text = room.read("columns.pdf", samples.two_columns())["text"]
    assert text.index("left line 39") < text.index("right line 00")


def test_a_table_in_a_pdf_is_a_table(room: Room) -> None:
    assert "| City | Height |\n| --- | --- |\n| Bern | 540 m |" in room.read("t.pdf", samples.table_pdf())["text"]


BAD = {
    "empty.txt": (lambda: b"", "empty"),
    "blank.txt": (lambda: b" \n\n", "empty"),
    "blank.pdf": (lambda: samples.pdf([""]), "no text"),
    "garbage.pdf": (lambda: os.urandom(3000), "Save it anew"),
    "half.pdf": (lambda: samples.pdf(["word"])[:400], "damaged"),
    "half.docx": (lambda: samples.word()[:9000], "damaged"),
    "locked.pdf": (lambda: samples.locked_pdf("sesame"), "locked with a password"),
    "old.doc": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "Save it as DOCX"),
    "laughs.docx": (samples.billion_laughs_docx, "damaged"),
    "bomb.docx": (samples.bomb_docx, "unpacks to far more"),
    "picture.txt": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a picture"),
    "program.txt": (lambda: b"abc\0\x01\x02" * 99, "binary"),
    "letter.docx": (lambda: b"no docx at all", "named .docx"),
    "scan.pdf": (samples.scanned_pdf, "OCR"),
    "sheet.zip": (lambda: b"PK\x03\x04broken", "archive"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_says_what_to_do(room: Room, name: str) -> None:
    content, expected = BAD[name]
    row = room.read(name, content())
    assert row["state"] == ("needs OCR" if name == "scan.pdf" else "failed")
    assert expected in row["error"]
    assert row["error"].endswith((".", ")"))
    assert row["locked"] == (name == "locked.pdf")


@pytest.mark.parametrize("name", ["wrong.txt", "wrong.docx"])
def test_a_wrong_ending_is_seen_through(room: Room, name: str) -> None:
    row = room.read(name, samples.pdf(["The harbour freezes."]))
    assert (row["state"], row["kind"]) == ("ready", "pdf")
    assert "harbour" in row["text"]
    assert "it is PDF" in row["note"]


def test_a_bomb_ends_in_a_stated_state_and_the_next_file_is_read(make: Callable[..., Room]) -> None:
    room = make(cpu=3, memory=600_000_000)
    bomb = room.add("bomb.pdf", samples.bomb_pdf())
    assert room.read("good.txt", b"fine")["state"] == "ready"
    assert room.wait(bomb["id"], lambda row: row["state"] in OVER)["state"] == "failed"


def test_a_password_opens_and_is_not_kept(room: Room) -> None:
    row = room.read("locked.pdf", samples.locked_pdf("sesame"))
    room.files.retry("me", room.session, row["id"], password="wrong")
    row = room.wait(row["id"], lambda row: row["state"] in OVER)
    assert row["locked"]
    assert "does not open" in row["error"]
    room.files.retry("me", room.session, row["id"], password="sesame")
    row = room.wait(row["id"], lambda row: row["state"] in OVER)
    assert row["state"] == "ready"
    assert "vault" in row["text"]
    room.close()
    kept = b"".join(path.read_bytes() for path in room.folder.rglob("*.json*"))
    assert b"sesame" not in kept
    room.__init__(room.folder, Limits())


def test_another_encoding_can_be_chosen(room: Room) -> None:
    row = room.read("short.txt", "Привет".encode("koi8-r"))
    room.files.retry("me", room.session, row["id"], encoding="KOI8-R")
    row = room.wait(row["id"], lambda row: row["state"] == "ready" and row["encoding"] == "koi8-r")
    assert row["text"] == "Привет"
    with pytest.raises(BadRequest, match="no known encoding"):
        room.files.retry("me", room.session, row["id"], encoding="klingon")


def test_more_characters_than_are_taken(make: Callable[..., Room]) -> None:
    row = make(characters=100_000).read("long.txt", b"0123456789" * 20_000)
    assert row["state"] == "partial"
    assert "first 100,000 characters" in row["error"]
    assert row["text"].replace("\n", "").startswith("0123456789")
    assert 100_000 <= len(row["text"]) < 100_100


def test_limits_say_their_numbers(make: Callable[..., Room]) -> None:
    room = make(upload=1_000_000, files=1, quota=2_500_000)
    with pytest.raises(BadRequest, match=r"1.5 MB; at most 1 MB"):
        room.add("big.txt", b"x" * 1_500_000)
    room.read("one.txt", b"x" * 900_000)
    with pytest.raises(Conflict, match=r"Remove files first"):
        room.add("two.txt", b"x" * 900_000)
    with pytest.raises(Conflict, match="at most 1 files"):
        room.add("two.txt", b"x")
    assert list((room.folder / "cache").rglob("upload")) == []


def test_progress_by_page_and_what_is_read_is_there_at_once(room: Room) -> None:
    row = room.add("long.pdf", samples.pdf(samples.sentences(30, n) for n in range(120)))
    row = room.wait(row["id"], lambda row: row["text"] and row["progress"])
    assert row["state"] == "parsing"
    assert row["pages"] == 120
    assert 0 < row["progress"] < 1
    row = room.wait(row["id"], lambda row: row["state"] == "ready")
    assert samples.sentences(30, 119)[:40] in row["text"]


def test_a_limit_keeps_the_pages_before_it(make: Callable[..., Room]) -> None:
    room = make(cpu=4, cpu_per_page=0.0)
    row = room.read("long.pdf", samples.pdf(samples.sentences(40, n) for n in range(400)))
    assert row["state"] == "partial"
    assert "too long" in row["error"]
    assert samples.sentences(40, 0)[:40] in row["text"]


def test_removed_while_it_is_parsed(room: Room) -> None:
    row = room.add("long.pdf", samples.pdf(samples.sentences(30, n) for n in range(300)))
    room.wait(row["id"], lambda row: row["progress"] > 0)
    process = room.files._jobs[row["id"]].process
    room.files.remove("me", room.session, row["id"])
    assert process is not None
    assert process.wait(60) < 0
    assert room.files.listed("me", room.session) == []
    assert room.on_disk() == []
    with pytest.raises(NotFound):
        room.files.get("me", room.session, row["id"])
    assert room.read("next.txt", b"its turn")["state"] == "ready"


def test_what_a_restart_interrupts_is_begun_again(room: Room) -> None:
    pages = samples.pdf(samples.sentences(30, n) for n in range(60))
    rows = [room.add(f"{n}.pdf", pages) for n in range(4)]
    room.wait(rows[0]["id"], lambda row: row["progress"] > 0)
    room.close()
    session = room.session
    room.__init__(room.folder, Limits())  # type: ignore[misc]
    room.session = session
    room.files.resume()
    for row in rows:
        row = room.wait(row["id"], lambda row: row["state"] in OVER)
        assert row["state"] == "ready"
        assert row["text"].count(samples.sentences(30, 59)[:40]) == 1


def test_a_deleted_chat_takes_its_files_along_and_an_undo_brings_them_back(room: Room) -> None:
    row = room.read("a.txt", b"words")
    room.sessions.delete("me", room.session)
    with pytest.raises(NotFound):
        room.files.listed("me", room.session)
    room.sessions.restore("me", room.session)
    assert room.files.get("me", room.session, row["id"])["text"] == "words"
    room.sessions.delete("me", room.session)
    room.database.update_session(room.session, {"undo_until": 1.0})
    room.sessions.purge()
    assert room.on_disk() == []


def test_another_owner_sees_nothing(room: Room) -> None:
    row = room.read("a.txt", b"words")
    for use in (room.files.get, room.files.remove, room.files.retry):
        with pytest.raises(NotFound):
            use("you", room.session, row["id"])
    with pytest.raises(NotFound):
        room.files.listed("you", room.session)


def test_a_removal_that_a_crash_cut_is_finished(room: Room) -> None:
    row = room.read("a.txt", b"words")
    room.database.index("removed").put({"id": row["id"], "session": room.session})
    room.close()
    room.__init__(room.folder, Limits())  # type: ignore[misc]
    assert room.on_disk() == []


HOSTILE = ["../../../evil.txt", "/etc/cron.d/x", "..\\..\\x.txt", "a\u202etxt.exe", "a\0b.txt", ".", "...", ""]
HOSTILE += ["n" * 300 + ".txt"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_never_a_path(room: Room, name: str) -> None:
    row = room.read(name, b"words")
    assert row["state"] == "ready"
    assert 0 < len(row["name"]) <= 120
    assert not set(row["name"]) & set("/\\\0\u202e")
    assert all(path.is_relative_to(room.folder) for path in room.folder.rglob("*"))


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(st.sampled_from("a. /\u0301\u200d…"), max_size=300))
@example(". 0")
def test_any_name_becomes_one_printable_line(name: str) -> None:
    clean = clean_name(name)
    assert clean.isprintable()
    assert 0 < len(clean) <= 120
    assert clean_name(clean) == clean
    json.dumps(clean).encode()
