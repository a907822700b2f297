"""What is remembered across chats: only what its owner wrote, only while it is on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from llmsvc.chat.memory import MOST_FACTS, Memory
from llmsvc.errors import BadRequest, NotFound
from llmsvc.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "data")
    yield opened
    opened.close()


def test_facts_are_their_owners(database) -> None:
    memory = Memory(database)
    fact = memory.set("ada", "", "  I like\n tea. ")
    assert memory.listed("ada") == {"on": False, "facts": [{"id": fact["id"], "text": "I like tea."}]}
    assert memory.facts("ada") == []
    memory.switch("ada", True)
    assert memory.facts("ada") == ["I like tea."]
    assert memory.facts("bob") == []
    for refused in (lambda: memory.set("bob", fact["id"], "Mine."), lambda: memory.delete("bob", fact["id"])):
        with pytest.raises(NotFound, match="no such fact"):
            refused()
    memory.set("ada", fact["id"], "I like coffee.")
    assert Memory(database).facts("ada") == ["I like coffee."]
    assert memory.delete("ada", fact["id"])["text"] == "I like coffee."
    assert memory.facts("ada") == []


def test_a_message_is_noted_only_if_it_says_so_and_the_memory_is_on(database) -> None:
    memory = Memory(database)
    memory.note("ada", "Remember: I like tea.")
    memory.switch("ada", True)
    memory.note("ada", "Do you remember: what I like?")
    assert memory.facts("ada") == []
    for _ in range(2):  # once is enough
        memory.note("ada", "Remember: I live\nin Bergen.")
    assert memory.facts("ada") == ["I live in Bergen."]


def test_the_memory_has_bounds(database) -> None:
    memory = Memory(database)
    for text in (" \n", "long " * 200):
        with pytest.raises(BadRequest, match="1 to 500 characters"):
            memory.set("ada", "", text)
    for number in range(MOST_FACTS):
        memory.set("ada", "", f"Fact {number}.")
    with pytest.raises(BadRequest, match="Delete one first"):
        memory.set("ada", "", "One more.")


def test_scripts_see_and_change_it_and_prompts_have_it(app) -> None:
    client = Client(app.url, verbose=False)
    session = client.predict(title="Tea", api_name="/session_create")["id"]
    say = lambda text: client.predict(session, text, max_tokens=4, api_name="/chat")[1]["context"]  # noqa: E731
    fact = client.predict("", "My name is Ada.", api_name="/memory_set")
    try:
        assert say("Hello.")["memory"] == 0
        assert client.predict(True, api_name="/memory_switch")["on"]
        assert say("Who am I?")["memory"] > 5
        say("Remember: I live in Bergen.")
        texts = [row["text"] for row in client.predict(api_name="/memory_list")["facts"]]
        assert texts == ["My name is Ada.", "I live in Bergen."]
        with pytest.raises(AppError, match="1 to 500 characters"):
            client.predict(fact["id"], "", api_name="/memory_set")
    finally:
        client.predict(False, api_name="/memory_switch")
        for row in client.predict(api_name="/memory_list")["facts"]:
            client.predict(row["id"], api_name="/memory_delete")
    assert say("Hello again.")["memory"] == 0
