"""What the log says, and what it never does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import MODEL, until
from conftest import App, with_models_of
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

CANARY = "canary-that-nobody-logs"
KEY = f"key-{CANARY}"


@pytest.fixture(scope="module")
def logging(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    own = with_models_of(data_dir, tmp_path_factory.mktemp("logging"))
    running = App(own, "--log-json", "--log-level", "debug", "--auth", f"ann:{CANARY}", "--api-key", KEY).wait()
    yield running
    running.stop()


def lines(app: App) -> list[dict[str, Any]]:
    return [json.loads(line) for line in app.log.read_text().splitlines() if line.startswith("{")]


def test_a_request_has_an_id(logging) -> None:
    given = httpx.get(f"{logging.url}/health", headers={"X-Request-ID": "from-a-proxy.1"})
    assert given.headers["x-request-id"] == "from-a-proxy.1"
    made = [httpx.get(f"{logging.url}{path}").headers["x-request-id"] for path in ("/health", "/v1/models")]
    for insane in ("short", "x" * 65, "two words here", "<script>alert</script>", '"}{"a":"b'):
        made.append(httpx.get(f"{logging.url}/health", headers={"X-Request-ID": insane}).headers["x-request-id"])
        assert made[-1] != insane
    assert len(set(made)) == len(made)
    until(lambda: {"from-a-proxy.1", *made} <= {line.get("id") for line in lines(logging)})
    (line,) = (line for line in lines(logging) if line.get("id") == "from-a-proxy.1")
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/health", 200)
    assert line["ms"] >= 0


def test_an_answer_has_the_id_of_its_request(logging) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "the-request-of-a-chat", "X-LLMSVC-Session": "new"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    httpx.post(f"{logging.url}/v1/chat/completions", json=body, headers=headers, timeout=60).raise_for_status()
    client = Client(logging.url, headers=headers, verbose=False)  # through Gradio's queue
    session = client.predict(api_name="/session_create")["id"]
    client.predict(session, "Hello", max_tokens=3, api_name="/chat")
    turns = lambda: [line for line in lines(logging) if line["event"] == "turn"]  # noqa: E731
    until(lambda: len(turns()) == 2)
    for turn in turns():
        assert (turn["request"], turn["owner"], turn["state"], turn["model"]) == (
            "the-request-of-a-chat",
            "local",
            "done",
            MODEL,
        )
        assert turn["completion_tokens"] == 3


def test_nothing_that_was_said_is_logged(logging, tmp_path) -> None:
    api = httpx.Client(base_url=logging.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    said = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 3}
    assert api.post("/v1/chat/completions", json=said).status_code == 200
    for body in (
        {**said, "model": CANARY},
        {**said, "temperature": CANARY},
        {**said, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": CANARY}}}},
        {CANARY: CANARY},
    ):
        assert api.post("/v1/chat/completions", json=body).status_code >= 400
    assert api.post("/v1/messages", content=f'{{"{CANARY}'.encode()).status_code == 400
    api.post("/v1/keys", json={"name": CANARY}).raise_for_status()
    for path in (f"/v1/models/{CANARY}", f"/{CANARY}", f"/gradio_api/{CANARY}", f"/v1/sessions/{CANARY}/turn"):
        assert api.get(path, params={"q": CANARY}, headers={"X-Request-ID": f"{CANARY} {CANARY}"}).status_code == 404
    for password in (CANARY, f"wrong-{CANARY}"):
        httpx.post(f"{logging.url}/login", data={"username": CANARY, "password": password})
    client = Client(logging.url, auth=("ann", CANARY), verbose=False)
    session = client.predict(title=CANARY, api_name="/session_create")["id"]
    client.predict(session, CANARY, system=CANARY, stop=[CANARY], max_tokens=3, api_name="/chat")
    client.predict(CANARY, api_name="/session_list")
    for ask in (
        lambda: client.predict(session, CANARY, temperature=CANARY, api_name="/chat"),
        lambda: client.predict(session, CANARY, model=CANARY, api_name="/chat"),
        lambda: client.predict(session, CANARY, regex=f"({CANARY}", api_name="/chat"),
        lambda: client.predict(CANARY, api_name="/session_import"),
        lambda: client.predict(CANARY, api_name="/model_load"),
        lambda: client.predict({CANARY: CANARY}, api_name="/settings_set"),
    ):
        with pytest.raises(AppError):
            ask()
    file = tmp_path / f"{CANARY}.pdf"
    file.write_bytes(b"%PDF-1.7 " + CANARY.encode())
    row = client.predict(handle_file(str(file)), session, api_name="/file_upload")
    until(lambda: client.predict(session, row["id"], api_name="/file_get")["state"] not in ("queued", "parsing"))
    page = [row["id"] for row in api.get("/config").json()["dependencies"] if row["backend_fn"]]
    for number in page:  # what no handler can read
        for data in ([CANARY], [{"path": CANARY, "meta": {"_type": "gradio.FileData"}}] * 3, [{CANARY: CANARY}] * 2):
            body = {"fn_index": number, "session_hash": "x", "data": data, "event_data": {"action": CANARY}}
            api.post("/gradio_api/run/predict", json=body)
    until(lambda: len([line for line in lines(logging) if line["event"] == "request"]) > len(page))
    shown = logging.log.read_text()
    assert CANARY not in shown
    assert "Traceback" not in shown
