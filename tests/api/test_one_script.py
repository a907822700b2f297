"""One script that uses the whole API as gradio_client sees it, in the order in which people need it."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import CAPITAL, MODEL, PARIS, STORY, until
from conftest import App
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from llmsvc.models import hub

QUESTION, LONG = CAPITAL[0]["content"], STORY[0]["content"]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
    import random_models

    config = random_models.config("llama", random.Random(3), vocabulary=49_152)
    return str(random_models.save(config, tmp_path_factory.mktemp("other") / "tiny", tokenizer))


@pytest.fixture
def own(own_data: Path) -> Iterator[App]:
    running = App(own_data).wait()
    yield running
    running.stop()


class Script:
    """Remembers which endpoints were called, and called wrongly."""

    def __init__(self, url: str) -> None:
        self.client, self.called, self.refused = Client(url, verbose=False), set[str](), set[str]()

    def __call__(self, name: str, *given: Any, **named: Any) -> Any:
        found = self.client.predict(*given, **named, api_name=f"/{name}")
        self.called.add(f"/{name}")
        return found

    def stream(self, name: str, *given: Any, **named: Any) -> tuple[list[Any], Any]:
        """All frames, and the last one."""
        job = self.client.submit(*given, **named, api_name=f"/{name}")
        last = job.result(timeout=120)
        self.called.add(f"/{name}")
        return job.outputs(), last

    def refuses(self, sentence: str, name: str, *given: Any, **named: Any) -> None:
        with pytest.raises(AppError, match=sentence) as error:
            self.client.predict(*given, **named, api_name=f"/{name}")
        assert "Traceback" not in str(error.value)
        self.refused.add(f"/{name}")


def test_every_endpoint(own: App, app: App, other_model: str, tmp_path: Path) -> None:
    call = Script(own.url)
    named = set(call.client.view_api(return_format="dict")["named_endpoints"])

    # Chats
    session = call("session_create", title="Geography")["id"]
    assert [row["id"] for row in call("session_list")] == [session]
    assert call("session_rename", session, "Capitals")["title"] == "Capitals"
    frames, (text, status) = call.stream("chat", session, QUESTION, temperature=0)
    assert (text, status["state"]) == (PARIS, "done")
    assert all(text.startswith(frame) for frame, _ in frames)
    assert call.stream("attach", session, 4)[1][0] == text[4:]
    question, answer = call("session_get", session)["messages"]
    assert call.stream("regenerate", session, answer["id"])[1][1]["state"] == "done"
    assert call.stream("edit", session, question["id"], "What is the capital of Italy?")[1][1]["state"] == "done"
    call("branch_select", session, question["id"])
    assert call("session_get", session)["messages"][0]["content"] == QUESTION
    assert call("session_settings", session, {"temperature": 0, "max_tokens": 900})["temperature"] == 0

    # An answer that runs, two messages that wait behind it, and an end
    running = call.client.submit(session, LONG, api_name="/chat")
    next(text for text, _ in running if text)
    waiting = []
    for number, text in enumerate(("One", "Two"), 1):
        waiting.append(call.client.submit(session, text, api_name="/chat"))
        until(lambda: len(call("session_get", session)["queued"]) == number)  # noqa: B023
    first, second = (row["id"] for row in call("session_get", session)["queued"])
    call("queue_edit", session, first, QUESTION)
    call("queue_remove", session, second)
    assert call("stop", session)["state"] == "stopped"
    assert waiting[0].result(timeout=120)[1]["state"] == "done"
    assert QUESTION in [row["content"] for row in call("session_get", session)["messages"][2:]]
    assert call("queue_send", session) == {}
    story = call("session_create")["id"]  # of its own: behind a story that was cut short, another may end as early
    running = call.client.submit(story, LONG, temperature=0, api_name="/chat")
    next(text for text, _ in running if text)
    before = call("stop", story)["offset"]
    going = call.client.submit(story, api_name="/continue")
    next(text for text, _ in going if len(text) > before + 10)
    call.called.add("/continue")
    call("stop", story)
    call("session_delete", story)

    # Files
    (tmp_path / "vault.txt").write_text("The password of the vault is quince.")
    file = call("file_upload", handle_file(tmp_path / "vault.txt"), session)["id"]
    until(lambda: call("file_get", session, file)["state"] == "ready")
    assert "quince" in call("file_get", session, file)["text"]
    assert [row["name"] for row in call("file_list", session)] == ["vault.txt"]
    call("file_retry", session, file, encoding="utf-16")
    call("file_remove", session, file)
    assert call("file_list", session) == []

    # Memory and settings
    assert call("memory_switch", True)["on"]
    fact = call("memory_set", "", "I collect stamps.")["id"]
    assert [row["text"] for row in call("memory_list")["facts"]] == ["I collect stamps."]
    call("memory_delete", fact)
    assert call("settings_set", {"top_p": 0.5})["top_p"] == call("settings_get")["top_p"] == 0.5

    # Models, of this machine and of another server
    assert MODEL in [row["id"] for row in call("model_catalog")]
    assert call("model_forecast", other_model)["fits"]
    stages, row = call.stream("model_load", other_model)
    assert (row["id"], row["state"]) == (other_model, "ready")
    assert {"stage", "done", "total"} <= stages[0].keys()
    assert call("model_pin", other_model)["pinned"]
    assert {row["id"] for row in call("model_list")} == {MODEL, other_model}
    assert call("model_unload", other_model).keys() == {"memory_before", "memory_after"}
    assert call("remote_add", app.url)["models"] == [MODEL]
    assert [row["url"] for row in call("remote_list")] == [app.url]
    assert call.stream("chat", session, QUESTION, f"remote:{MODEL}", max_tokens=20)[1][1]["state"] == "done"
    call("remote_remove", app.url)

    # What cannot be done is a sentence
    gone = "0" * 32
    for name in ("session_get", "session_delete", "session_restore", "session_export", "attach", "stop", "queue_send"):
        call.refuses("no chat|nothing to undo|not there|There is no", name, gone)
    for name in ("chat", "session_rename", "branch_select", "regenerate", "file_get", "file_remove", "file_retry"):
        call.refuses("There is no", name, gone, gone)
    for name in ("model_unload", "model_pin", "model_forecast"):
        call.refuses("[Tt]here is no|not loaded|cannot|not found", name, "no/such-model-at-all")
    call.refuses("not downloaded by llmsvc", "model_delete", other_model)
    if hub.answers():
        assert call("model_search", "smol")
    else:
        call.refuses("hub cannot be reached", "model_search", "smol")
        call.called.add("/model_search")  # what it finds: tests/models/test_hub.py
    call.refuses("temperature", "settings_set", {"temperature": "hot"})
    call.refuses("temperature", "chat", session, "Hello", temperature=-3)
    call.refuses("no exported chat", "session_import", "{}")
    call.refuses("no server", "remote_remove", "http://127.0.0.1:9")

    # The end of a chat, and back
    exported = json.loads(call("session_export", session))
    copy = call("session_import", json.dumps(exported))["id"]
    assert [m["content"] for m in call("session_get", copy)["messages"]] == [
        m["content"] for m in call("session_get", session)["messages"]
    ]
    call("session_delete", session)
    assert session not in [row["id"] for row in call("session_list")]
    assert call("session_restore", session)["id"] == session
    call("model_unload", MODEL)
    assert call("model_delete", MODEL)["freed_bytes"] > 0
    assert call.called == named
