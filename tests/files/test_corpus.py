"""Every file, however odd, ends in a stated state, with its text or a sentence that says what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import CASES
from test_files import OVER, Room

from llmsvc.files.limits import Limits


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """All of them in one chat, read two at a time."""
    room = Room(tmp_path_factory.mktemp("corpus"), Limits(files=len(CASES), cpu=10, cpu_per_page=0.02))
    room.ids = {name: room.add(name, make())["id"] for name, (make, *_) in CASES.items()}
    yield room
    room.close()


@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_a_stated_state(room: Room, name: str) -> None:
    _, state, words = CASES[name]
    row = room.wait(room.ids[name], lambda row: row["state"] in OVER)
    assert row["state"] == state, row["error"]
    assert words in (row["text"] if state == "ready" else row["error"])
    assert (row["error"] == "") == (state == "ready")
    assert "evil()" not in row["text"]
    assert not Path("/tmp/escaped.txt").exists()
