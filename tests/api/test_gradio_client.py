"""The contract's endpoints, through the real client, against the running app with the real model."""

import concurrent.futures
import contextlib
import io
import itertools
import re
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(app) -> Client:
    return Client(app.url, verbose=False)


@pytest.fixture
def session(client) -> str:
    return client.predict(title="A test", api_name="/session_create")["id"]


def test_the_readme_script(app) -> None:
    """The script of the README: creates a session, chats twice, lists and reads it."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code.replace("http://127.0.0.1:7860", app.url), {})
    lines = shown.getvalue()
    assert lines.startswith("The capital of France is Paris.")
    assert "Geography" in lines
    assert "user : What is it known for?" in lines
    answer = lines.split("user : What is it known for?\nassistant : ")[1]
    assert "Paris" in answer or "Eiffel" in answer  # "it" was understood from the first answer


def test_chat_streams_text_that_grows(client, session) -> None:
    job = client.submit(session, "Count from one to ten.", temperature=0, max_tokens=40, api_name="/chat")
    text, status = job.result(timeout=120)
    frames = [text for text, _ in job.outputs()]
    assert len({f for f in frames if f}) > 2
    assert all(b.startswith(a) for a, b in itertools.pairwise(frames))
    assert status["state"] == "done"
    assert status["offset"] == len(text)
    assert 0 < status["usage"]["completion_tokens"] <= 40
    ledger = status["context"]
    assert ledger["system"] + ledger["history"] + ledger["message"] == ledger["prompt"]
    stored = client.predict(session, api_name="/session_get")["messages"]
    assert [m["role"] for m in stored] == ["user", "assistant"]
    assert stored[1]["content"] == text


def test_a_seed_repeats_and_another_differs(client) -> None:
    def ask(seed: int) -> str:
        session = client.predict(api_name="/session_create")["id"]
        options = {"temperature": 1.2, "top_p": 1, "max_tokens": 24, "seed": seed}
        return client.predict(session, "Invent a word.", **options, api_name="/chat")[0]

    assert ask(1) == ask(1) != ask(2)


def test_stop_strings_end_the_text(client, session) -> None:
    question = "What is the capital of France?"
    text, status = client.predict(session, question, temperature=0, stop=["of France"], api_name="/chat")
    assert text == "The capital "
    assert status["usage"]["finish_reason"] == "stop"


def test_stop_keeps_what_is_there(client, session) -> None:
    job = client.submit(session, "Write a long story about a ship.", max_tokens=1000, api_name="/chat")
    for text, status in job:
        if len(text) > 20:
            stopped = client.predict(session, api_name="/stop")
            assert stopped["turn_id"] == status["turn_id"]
            break
    text, status = job.result(timeout=60)
    assert status["state"] == "stopped"
    assert status["usage"]["completion_tokens"] < 1000
    assert client.predict(session, api_name="/session_get")["messages"][1]["content"] == text


def test_many_at_once_stay_apart(client) -> None:
    """Rows of one batch at different positions give what each would give alone."""
    capitals = {"France": "Paris", "Japan": "Tokyo", "Russia": "Moscow", "Greece": "Athens"}

    def ask(land: str) -> str:
        session = client.predict(api_name="/session_create")["id"]
        question = f"What is the capital of {land}?"
        return client.predict(session, question, temperature=0, max_tokens=24, api_name="/chat")[0]

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ask, capitals))
    assert together == [f"The capital of {land} is {city}." for land, city in capitals.items()]


def test_sessions_from_cradle_to_undo(client) -> None:
    made = client.predict(title="Zebra crossing", api_name="/session_create")
    assert set(made) == {"id", "title", "created_at", "updated_at", "model", "turns"}
    sid = made["id"]
    assert client.predict(sid, "Quagga", api_name="/session_rename")["title"] == "Quagga"
    assert [s["id"] for s in client.predict(query="quagga", api_name="/session_list")] == [sid]
    deleted = client.predict(sid, api_name="/session_delete")
    assert deleted["id"] == sid
    assert deleted["undo_until"] > made["created_at"]
    assert client.predict(query="quagga", api_name="/session_list") == []
    with pytest.raises(AppError, match="deleted"):
        client.predict(sid, api_name="/session_get")
    assert client.predict(sid, api_name="/session_restore")["title"] == "Quagga"
    assert client.predict(sid, api_name="/session_get")["title"] == "Quagga"


def test_export_and_import(client, session) -> None:
    client.predict(session, "Name a colour.", temperature=0, max_tokens=16, api_name="/chat")
    text = client.predict(session, "json", api_name="/session_export")
    again = client.predict(text, api_name="/session_import")
    assert again["id"] != session
    before, after = (client.predict(s, api_name="/session_get")["messages"] for s in (session, again["id"]))
    assert [(m["role"], m["content"]) for m in before] == [(m["role"], m["content"]) for m in after]
    assert "## User\n\nName a colour." in client.predict(session, "markdown", api_name="/session_export")


def test_search_finds_words_of_messages(client, session) -> None:
    client.predict(session, "Tell me of the axolotl.", max_tokens=4, api_name="/chat")
    assert session in [s["id"] for s in client.predict(query="AXOLOTL", api_name="/session_list")]


@pytest.mark.parametrize(
    ("endpoint", "arguments", "sentence"),
    [
        ("/chat", ["{session}", "   "], "message is empty"),
        ("/chat", ["{session}", "word " * 9000], "9,0.. tokens, but the model reads at most 8,192"),
        ("/chat", ["nonsense", "Hello"], "no such chat"),
        ("/chat", ["{session}", "Hello", "not a model"], "no model id"),
        ("/chat", ["{session}", "Hello", "/no/such/folder"], "There is no /no/such/folder"),
        ("/chat", ["{session}", "Hello", "nobody/nothing-at-all"], "nobody/nothing-at-all"),
        ("/chat", ["{session}", "Hello", "", -1], "temperature must be between"),
        ("/chat", ["{session}", "Hello", "", "hot"], "temperature must be a number"),
        ("/stop", ["{session}"], "Nothing is being answered"),
        ("/session_rename", ["{session}", " \n "], "needs a name"),
        ("/session_import", ["not json"], "no exported chat"),
        ("/session_export", ["{session}", "pdf"], "Unknown format"),
        ("/settings_set", [{"volume": 11}], "Unknown setting: volume"),
    ],
)
def test_bad_input_is_a_sentence(client, session, endpoint, arguments, sentence) -> None:
    given = [session if a == "{session}" else a for a in arguments]
    with pytest.raises(AppError, match=sentence) as error:
        client.predict(*given, api_name=endpoint)
    assert "Traceback" not in str(error.value)


def test_a_cut_answer_is_continued(client, session) -> None:
    """In two pieces it reads as it does in one."""
    question = "Name five animals."
    other = client.predict(api_name="/session_create")["id"]
    whole, _ = client.predict(other, question, temperature=0, max_tokens=24, api_name="/chat")
    before = client.predict(api_name="/settings_get")
    client.predict({"temperature": 0, "max_tokens": 12}, api_name="/settings_set")
    try:
        first, _ = client.predict(session, question, api_name="/chat")
        text, status = client.predict(session, api_name="/continue")
    finally:
        client.predict(before, api_name="/settings_set")
    assert whole.startswith(first)
    assert (text, status["usage"]["completion_tokens"]) == (whole, 24)
    last = client.predict(session, api_name="/session_get")["messages"]
    assert [m["content"] for m in last] == [question, whole]
    client.predict(session, "What is the capital of France?", temperature=0, api_name="/chat")
    with pytest.raises(AppError, match="nothing to continue"):
        client.predict(session, api_name="/continue")


def test_a_model_that_cannot_be_loaded_is_no_choice_to_keep(client, session) -> None:
    before = client.predict(session, api_name="/session_get")["model"]
    with pytest.raises(AppError):
        client.predict(session, "Hello", "nobody/nothing-at-all", api_name="/chat")
    assert client.predict(session, api_name="/session_get")["model"] == before
    assert client.predict(session, "Hello", max_tokens=3, api_name="/chat")[1]["state"] == "done"


def test_a_message_that_is_too_long_is_not_lost(client, session) -> None:
    with pytest.raises(AppError):
        client.predict(session, "word " * 9000, api_name="/chat")
    user, answer = client.predict(session, api_name="/session_get")["messages"]
    assert user["content"] == "word " * 9000
    assert answer["state"] == "failed"
    assert "8,192" in answer["error"]
    question = "What is the capital of France?"
    assert "Paris" in client.predict(session, question, temperature=0, api_name="/chat")[0]


def test_models(client) -> None:
    (default,) = [m for m in client.predict(api_name="/model_catalog") if m["default"]]
    assert default["local"]
    assert default["context"] == 8192
    (loaded,) = [m for m in client.predict(api_name="/model_list") if m["id"] == default["id"]]
    assert loaded["state"] == "ready"
    assert loaded["memory_bytes"] > 200_000_000


def test_the_api_lists_the_contract(client) -> None:
    named = set(client.view_api(return_format="dict")["named_endpoints"])
    sessions = {f"/session_{n}" for n in ("create", "list", "get", "rename", "delete", "restore", "export", "import")}
    files = {f"/file_{n}" for n in ("upload", "list", "get", "remove", "retry")}
    models = {f"/model_{n}" for n in ("catalog", "search", "list", "forecast", "load", "unload", "pin", "delete")}
    remote = {f"/remote_{n}" for n in ("add", "list", "remove")}
    memory = {f"/memory_{n}" for n in ("list", "switch", "set", "delete")}
    assert named == sessions | files | models | remote | memory | {
        "/chat",
        "/attach",
        "/continue",
        "/regenerate",
        "/edit",
        "/branch_select",
        "/stop",
        "/queue_edit",
        "/queue_remove",
        "/queue_send",
        "/session_settings",
        "/settings_get",
        "/settings_set",
    }
