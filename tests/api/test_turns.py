"""An answer belongs to its session: watched from anywhere, queued behind, branched, resumed exactly.

All over the real doors.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from clients import until
from gradio_client import Client
from gradio_client.exceptions import AppError
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsvc.chat import transfer
from llmsvc.errors import BadRequest
from llmsvc.store.database import Row

STORY = "Write a long story about a lighthouse and the sea."


@pytest.fixture(scope="module")
def client(app) -> Client:
    return Client(app.url, verbose=False)


@pytest.fixture
def session(client) -> str:
    return client.predict(title="A test", api_name="/session_create")["id"]


def messages(client: Client, session: str) -> list[Row]:
    return client.predict(session, api_name="/session_get")["messages"]


def sse(app, session: str, last_id: str = "") -> Iterator[tuple[str, str, Row]]:
    """(event, id, data) of the session's stream."""
    url = f"{app.url}/v1/sessions/{session}/stream"
    with httpx.stream("GET", url, headers={"Last-Event-ID": last_id}, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        event = id_ = ""
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                id_ = value
            elif name == "data":
                yield event, id_, json.loads(value)


def begun(client: Client, session: str, length: int = 1, **options: Any) -> Any:
    """The job of an answer that has so many characters."""
    job = client.submit(session, STORY, api_name="/chat", **{"temperature": 0, "max_tokens": 60, **options})
    for text, _ in job:
        if len(text) >= length:
            return job
    raise AssertionError("it ended too early")


def test_attach_gives_the_text_from_an_offset_on(client, session) -> None:
    job = begun(client, session, 30)
    watching = client.submit(session, 10, api_name="/attach")
    tail, status = watching.result(timeout=120)
    whole, _ = job.result(timeout=120)
    assert (tail, status["offset"], status["state"]) == (whole[10:], len(whole), "done")
    assert all(whole[10:].startswith(part) for part, _ in watching.outputs())
    assert client.predict(session, api_name="/attach")[0] == whole  # the last turn, when none runs
    assert client.predict(session, len(whole) + 5, api_name="/attach")[0] == ""


def test_a_client_that_goes_away_takes_nothing_with_it(client, session) -> None:
    begun(client, session).cancel()
    assert client.predict(session, api_name="/attach")[1]["state"] == "done"
    assert messages(client, session)[1]["usage"]["completion_tokens"] > 20


def test_what_is_sent_meanwhile_waits_its_turn(client, session) -> None:
    first = begun(client, session, max_tokens=4000)
    jobs = [client.submit(session, f"Say the word {w}.", max_tokens=6, api_name="/chat") for w in ("one",)]
    queued = lambda: client.predict(session, api_name="/session_get")["queued"]  # noqa: E731
    until(lambda: len(queued()) == 1)
    jobs.append(client.submit(session, "Withdraw me.", api_name="/chat"))
    until(lambda: len(queued()) == 2)
    assert [row["content"] for row in queued()] == ["Say the word one.", "Withdraw me."]
    client.predict(session, queued()[0]["id"], "Say the word two.", api_name="/queue_edit")
    client.predict(session, queued()[1]["id"], api_name="/queue_remove")
    with pytest.raises(AppError, match="is empty"):
        client.predict(session, queued()[0]["id"], " ", api_name="/queue_edit")
    assert jobs[1].result(timeout=60)[1]["state"] == "stopped"
    client.predict(session, api_name="/stop")
    first.result(timeout=120)
    turn = jobs[0].result(timeout=120)[1]["turn_id"]
    rows = messages(client, session)
    assert [row["content"] for row in rows[::2]] == [STORY, "Say the word two."]
    assert rows[-1]["turn_id"] == turn
    assert queued() == []
    with pytest.raises(AppError, match="does not wait any more"):
        client.predict(session, turn, "Too late", api_name="/queue_edit")


def test_branches_are_kept_and_chosen_again(client, session) -> None:
    ask = {"temperature": 0, "max_tokens": 12}
    client.predict(ask, api_name="/settings_set")
    client.predict(session, "Name a colour.", api_name="/chat")
    client.predict(session, "And another.", api_name="/chat")
    before = messages(client, session)
    client.predict(session, before[0]["id"], "Name an animal.", api_name="/edit")
    edited = messages(client, session)
    assert [row["content"] for row in edited[::2]] == ["Name an animal."]
    assert edited[0]["branches"] == [before[0]["id"], edited[0]["id"]]
    client.predict(session, edited[1]["id"], api_name="/regenerate")
    again = messages(client, session)
    assert again[0]["id"] == edited[0]["id"]
    assert again[1]["branches"] == [edited[1]["id"], again[1]["id"]]
    chosen = client.predict(session, before[0]["id"], api_name="/branch_select")["messages"]
    assert [(m["id"], m["content"]) for m in chosen] == [(m["id"], m["content"]) for m in before]
    client.predict(session, before[3]["id"], "My own words.", api_name="/edit")  # an answer is changed, not asked anew
    changed = messages(client, session)
    assert [m["content"] for m in changed] == [*(m["content"] for m in before[:3]), "My own words."]
    with pytest.raises(AppError, match="no such message"):
        client.predict(session, "nonsense", api_name="/branch_select")


def test_nothing_branches_while_an_answer_runs(client, session) -> None:
    job = begun(client, session, max_tokens=4000)
    asked = messages(client, session)[0]["id"]
    for name, *more in (("/edit", "Other words."), ("/regenerate",)):
        with pytest.raises(AppError, match="still being answered"):
            client.predict(session, asked, *more, api_name=name)
    client.predict(session, api_name="/stop")
    job.result(timeout=120)
    assert len(messages(client, session)) == 2


def test_events_are_the_text_and_resume_where_they_were_cut(app, client, session) -> None:
    begun(client, session, max_tokens=100)
    text, last_id, events = "", "", 0
    while True:
        for event, id_, data in sse(app, session, last_id):
            assert data["offset"] == len(text)  # exactly behind what came before, over every cut
            text, last_id, events = text + data["text"], id_, events + 1
            assert data["length"] == len(text)
            if event == "end" or events % 5 == 0:
                break
        if event == "end":
            break
    answer = messages(client, session)[-1]
    assert text == answer["content"]
    assert (data["state"], data["turn_id"]) == ("done", answer["turn_id"])
    assert data["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_events_of_an_answer_that_has_ended(app, client, session) -> None:
    client.predict(session, "Say hello in French, with é and 🎉.", temperature=0, max_tokens=24, api_name="/chat")
    answer = messages(client, session)[-1]
    content, turn = answer["content"], answer["turn_id"]
    ((event, id_, data),) = sse(app, session)
    assert (event, data["text"], data["offset"]) == ("end", content, 0)
    assert id_ == f"{turn}:{len(content)}:end"
    ((_, _, data),) = sse(app, session, f"{turn}:4")
    assert (data["offset"], data["text"]) == (4, content[4:])
    # A crash can leave less than a client saw: it is told to go back.
    ((_, _, data),) = sse(app, session, f"{turn}:99999")
    assert (data["offset"], data["text"], data["length"]) == (len(content), "", len(content))
    ((_, _, data),) = sse(app, session, f"{'0' * 32}:4")  # of another turn
    assert (data["offset"], data["text"]) == (0, content)
    url = f"{app.url}/v1/sessions/{session}/stream"
    assert httpx.get(url, headers={"Last-Event-ID": id_}).status_code == 204
    for odd in ("x", f"{turn}:-1", f"{turn}:²", ":", "a:b:c", f"{turn}:{'9' * 5000}"):
        assert httpx.get(url, headers={"Last-Event-ID": odd.encode()}).status_code == 200


def test_the_running_turn_as_it_is_now(app, client, session) -> None:
    job = begun(client, session, 30, max_tokens=4000)
    now = httpx.get(f"{app.url}/v1/sessions/{session}/turn").json()
    until(lambda: len(httpx.get(f"{app.url}/v1/sessions/{session}/turn").json()["text"]) > now["length"])
    client.predict(session, api_name="/stop")
    whole, status = job.result(timeout=120)
    assert (now["turn_id"], now["state"], now["offset"]) == (status["turn_id"], "running", 0)
    assert whole.startswith(now["text"])
    assert 30 <= now["length"] == len(now["text"]) < len(whole)
    assert httpx.get(f"{app.url}/v1/sessions/{'0' * 32}/turn").status_code == 404


def test_a_stream_of_nothing_is_an_error_object(app, session) -> None:
    for id_ in (session, "nonsense"):
        response = httpx.get(f"{app.url}/v1/sessions/{id_}/stream")
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"


def test_a_page_that_is_older_than_the_server_stays_in_its_chat(app, client, session) -> None:
    """After a restart the server knows no tab. What one does first is about the chat that it shows."""
    client.predict(session, "Name a colour.", max_tokens=5, api_name="/chat")
    chats = client.predict(api_name="/session_list")
    names = {row["api_name"]: row["id"] for row in httpx.get(f"{app.url}/config").json()["dependencies"]}

    def first(name: str, data: list[Any], event: Row | None = None) -> list[Any]:
        tab = f"{name}{time.monotonic_ns()}"
        body = {"fn_index": names[name], "session_hash": tab, "event_data": event, "data": data}
        httpx.post(f"{app.url}/gradio_api/queue/join", json=body).raise_for_status()
        with httpx.stream("GET", f"{app.url}/gradio_api/queue/data?session_hash={tab}", timeout=60) as response:
            for line in response.iter_lines():
                if '"process_completed"' in line:
                    return json.loads(line.removeprefix("data: "))["output"]["data"]
        raise AssertionError("the stream broke off")

    assert first("on_action", [session], {"action": "done", "id": ""})[0] == session
    assert first("on_submit", [session, {"text": "And another.", "files": []}])[0] == session  # shown, and not sent yet
    assert [m["content"] for m in messages(client, session)][::2] == ["Name a colour."]
    assert first("on_action", [session], {"action": "again", "id": messages(client, session)[1]["id"]})[0] == session
    assert client.predict(api_name="/session_list") == chats


def test_settings_go_from_all_to_model_to_session_to_message(client, session) -> None:
    (model,) = [m["id"] for m in client.predict(api_name="/model_catalog") if m["default"]]
    client.predict({"max_tokens": 9, "temperature": 0}, api_name="/settings_set")
    words = lambda **more: client.predict(session, STORY, api_name="/chat", **more)[1]["usage"]["completion_tokens"]  # noqa: E731
    try:
        assert words() == 9
        client.predict({"max_tokens": 8}, model, api_name="/settings_set")
        assert words() == 8
        assert client.predict(session, {"max_tokens": 7}, api_name="/session_settings")["max_tokens"] == 7
        assert words() == 7
        assert words(max_tokens=6) == 6
        assert client.predict(session, {"max_tokens": None}, api_name="/session_settings")["max_tokens"] == 8
        with pytest.raises(AppError, match="temperature"):
            client.predict(session, {"temperature": "hot"}, api_name="/session_settings")
    finally:
        of_model = client.predict({"max_tokens": None}, model, api_name="/settings_set")
        of_all = client.predict({"max_tokens": None}, api_name="/settings_set")
    assert (of_model["max_tokens"], of_all["max_tokens"]) == (9, 1024)


# What is exported can be brought back

texts = st.text(max_size=60) | st.sampled_from(
    [
        "## User",
        "\\## Assistant\n\n",
        "# Title\n## System\n",
        "\r\n## User\r\n",
        "```\n## User\n```",
        "\n\n",
        "",
        "</details>\n\n> x",
        "<details><summary>Reasoning</summary>\n\n> x\n\n</details>\n\n",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), texts, st.just("") | texts), min_size=1),
)
def test_markdown_brings_back_every_message(title: str, said: list[tuple[str, str, str]]) -> None:
    plain = [(role, text.replace("\r", ""), thought.replace("\r", "")) for role, text, thought in said]
    rows = [transfer.message(role, text, "t", reasoning=thought) for role, text, thought in plain]
    session = {"title": " ".join(title.split()) or "A chat", "messages": transfer.tree(rows)}
    found = transfer.read(transfer.to_markdown(session))
    assert [(m["role"], m["content"], m["reasoning"]) for m in found.messages] == plain


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 20)), min_size=1, max_size=12))
def test_json_brings_back_every_branch(said: list[tuple[str, int]]) -> None:
    rows: list[Row] = []
    for number, (text, at) in enumerate(said):
        above = rows[at % len(rows)] if rows and at % 3 else None
        place = {"parent": above["id"] if above else "", "depth": above["depth"] + 1 if above else 1}
        rows.append(transfer.message("user", text, "t", chosen=number + 1, **place))

    def paths(found: list[Row]) -> list[tuple[str, ...]]:
        by_id = {row["id"]: row for row in found}

        def path(row: Row | None) -> tuple[str, ...]:
            return (*path(by_id.get(row["parent"])), row["content"]) if row else ()

        return sorted(path(row) for row in found)

    tip, line = rows[-1], []
    while True:
        line.insert(0, tip)
        if not tip["parent"]:
            break
        tip = next(row for row in rows if row["id"] == tip["parent"])
    others = [row for row in rows if row not in line]
    found = transfer.read(json.dumps({"title": "T", "messages": line, "other_branches": others})).messages
    assert paths(found) == paths(rows)
    assert max(found, key=lambda row: row["chosen"])["content"] == line[-1]["content"]


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(st.sampled_from(["title", "messages", "role", "content", "settings", "id"]), s)
        ),
    ).map(json.dumps)
)
def test_any_other_text_is_refused_with_a_sentence(text: str) -> None:
    try:
        found = transfer.read(text)
    except BadRequest as error:
        refusal = str(error)
    else:  # by chance it was an exported chat, perhaps an empty one: then it is brought back whole
        rows, refusal = json.loads(text)["messages"], ""
        assert [(m["role"], m["content"]) for m in found.messages] == [(m["role"], m["content"]) for m in rows]
    assert not refusal or refusal.endswith(".")
