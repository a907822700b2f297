"""Passages are found that say the same in other words, with the real encoder in its real child process."""

import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from clients import until
from samples import sentences
from test_files import Room

from llmsvc.errors import Unavailable
from llmsvc.files import meaning
from llmsvc.files.encoder import Encoder
from llmsvc.files.files import Files
from llmsvc.files.limits import Limits
from llmsvc.files.meaning import Bring, Meaning
from llmsvc.store.database import Database

HOUSE = [
    "The boiler is serviced by a plumber each spring, and its pressure is noted in the log.",
    "To disable the illumination of the hall, press the lower switch for three seconds.",
    "Visitors park behind the barn. The gate opens at eight and closes at ten.",
    "The dog is fed twice a day. Its food is kept in the blue box.",
    "The feather bed upstairs is for guests; light blankets lie in the chest.",
    "Turn left at the mill if you come by car.",
]
QUESTION = "How can I turn off the lights?"
SAME = [
    "Short.",
    "",
    "Ünïcödé, 日本語 and العربية beside “quotes” and 🙂",
    "It begins with [CLS], [MASK]s a word and ends with [SEP].",
    "def parse(text: str) -> Node:\n    return Parser(text).run()",
    sentences(200),
]


@pytest.fixture
def make(tmp_path: Path, encoder_dir: Path) -> Iterator[Callable[..., Room]]:
    rooms: list[Room] = []

    def build(bring: Bring = lambda _: encoder_dir) -> Room:
        rooms.append(Room(tmp_path / str(len(rooms)), Limits(), Meaning(bring)))
        return rooms[-1]

    yield build
    for room in rooms:
        room.close()


def house(room: Room) -> str:
    """A file with a heading for each sentence; its id."""
    text = "\n\n".join(f"# Part {number}\n\n{line}" for number, line in enumerate(HOUSE))
    return str(room.read("house.md", text.encode())["id"])


def found(room: Room, question: str = QUESTION) -> list[str]:
    chunks = room.files.library(room.session).search(question, 4)
    return [chunk.text.split("\n\n")[-1] for chunk in chunks]


def vectors(room: Room) -> list[str]:
    return [name for name in room.on_disk() if ".vectors" in name]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize("text", SAME, ids=range(len(SAME)))
def test_a_vector_is_what_transformers_computes(encoder_dir, text) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder_dir), AutoModel.from_pretrained(encoder_dir)
    with torch.inference_mode():
        given = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        expected = torch.nn.functional.normalize(model(**given).last_hidden_state[0].mean(dim=0), dim=0).numpy()
    assert Encoder(encoder_dir).encode(text) @ expected > 0.9999


def test_what_is_said_in_other_words_is_found(make) -> None:
    room = make()
    house(room)
    until(lambda: found(room)[0] == HOUSE[1])
    assert found(room, "When is the puppy given its meals?") == [HOUSE[3]]  # no word is the same
    for chatter in ("Thanks!", "Write a poem.", "What is the capital of France?"):
        assert found(room, chatter) == []


def test_a_file_is_searched_by_its_words_until_the_encoder_comes(make) -> None:
    asked = threading.Event()

    def refuse(_: Any) -> Path:
        asked.set()
        raise Unavailable("There is no network.")

    room = make(refuse)
    house(room)
    assert asked.wait(60)
    assert found(room, "Where do visitors park?")[0] == HOUSE[2]
    assert found(room)[0] == HOUSE[5]
    assert not vectors(room)


def test_a_removed_file_leaves_no_vectors(make, encoder_dir) -> None:
    room = make()
    id_ = house(room)
    until(lambda: vectors(room))
    room.files.remove("me", room.session, id_)
    assert room.on_disk() == []

    asked, go_on = threading.Event(), threading.Event()

    def bring(_: Any) -> Path:
        asked.set()
        assert go_on.wait(60)
        return encoder_dir

    slow = make(bring)
    id_ = house(slow)
    assert asked.wait(60)
    slow.files.remove("me", slow.session, id_)
    go_on.set()
    slow.files.close()
    assert slow.on_disk() == []


@pytest.mark.parametrize("of_another_text", [False, True])
def test_vectors_that_are_damaged_or_of_another_text_are_made_again(make, of_another_text) -> None:
    room = make()
    house(room)
    until(lambda: vectors(room))
    (path,) = (room.folder / "data" / "files").rglob("*.vectors")
    if of_another_text:
        path.write_bytes(sha256(b"Another text").digest() + path.read_bytes()[32:])
    else:
        path.write_bytes(path.read_bytes()[:-9])
    damaged = path.read_bytes()
    room.read("other.txt", b"Another file, so that what is known of the chat is looked at again.")
    until(lambda: found(room) and content(path) not in (b"", damaged))
    until(lambda: found(room)[0] == HOUSE[1])


def test_after_a_restart_a_chat_is_searched_as_before(make, encoder_dir, monkeypatch) -> None:
    monkeypatch.setattr(meaning, "PATIENCE_SECONDS", 60.0)
    room = make()
    house(room)
    until(lambda: found(room)[0] == HOUSE[1])
    room.close()
    asked: list[str] = []

    def bring(_: Any) -> Path:
        asked.append("")
        return encoder_dir

    again = Files(database := Database(room.folder / "data"), Limits(), Meaning(bring))
    chunks = again.library(room.session).search(QUESTION, 4)
    assert HOUSE[1] in chunks[0].text
    assert asked
    again.close()
    database.close()


def test_a_file_that_is_removed_while_a_prompt_is_built_leaves_nothing(make) -> None:
    room = make()
    id_ = house(room)
    library = room.files.library(room.session)
    room.files.remove("me", room.session, id_)
    library.search(QUESTION, 4)
    room.files.close()
    assert room.on_disk() == []


def test_a_file_that_is_read_anew_gets_vectors_of_its_new_text(make) -> None:
    room = make()
    id_ = room.read("ausflug.txt", "Die Brücke über den Fluß wird für Fußgänger geöffnet.".encode("cp1252"))["id"]
    until(lambda: vectors(room))
    (path,) = (room.folder / "data" / "files").rglob("*.vectors")
    before = path.read_bytes()
    room.files.retry("me", room.session, id_, encoding="cp850")
    until(lambda: content(path) not in (b"", before))
    (document,) = room.files.library(room.session).documents
    assert path.read_bytes().startswith(document.digest)


def test_a_damaged_encoder_costs_no_answer(make, tmp_path, encoder_dir) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(encoder_dir, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    room = make(lambda _: broken)
    house(room)
    assert found(room, "Where do visitors park?")[0] == HOUSE[2]


def test_an_encoder_that_could_not_be_brought_is_asked_for_again_later(make, encoder_dir, monkeypatch) -> None:
    tried: list[str] = []

    def bring(_: Any) -> Path:
        tried.append("")
        if len(tried) == 1:
            raise Unavailable("There is no network.")
        return encoder_dir

    monkeypatch.setattr(meaning, "AGAIN_SECONDS", 0.0)
    room = make(bring)
    house(room)
    until(lambda: found(room)[0] == HOUSE[1])
    assert len(tried) == 2


def test_closing_ends_what_is_still_brought(make) -> None:
    asked = threading.Event()

    def bring(tell: Callable[[str, int, int], None]) -> Path:
        asked.set()
        while True:
            tell("Downloading", 0, 90_000_000)

    room = make(bring)
    house(room)
    assert asked.wait(60)
    room.files.close()
    assert not vectors(room)
