"""How much each login, key and guest may ask for."""

from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from clients import CAPITAL, MODEL
from conftest import App, with_models_of
from gradio_client import Client
from gradio_client.exceptions import AppError

KEYS = ("a-key-of-the-command-line", "another-key-of-the-command-line")
FOUR = [f"user{number}" for number in range(4)]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    own = with_models_of(data_dir, tmp_path_factory.mktemp("bounded"))
    logins = [flag for user in FOUR for flag in ("--auth", f"{user}:password")]
    running = App(own, *logins, "--guests", "--rate-limit", "2", "--guest-rate-limit", "1").wait()
    yield running
    running.stop()


def key_of(app: App, user: str) -> str:
    client = httpx.Client(base_url=app.url)
    client.post("/login", data={"username": user, "password": "password"}).raise_for_status()
    return str(client.post("/v1/keys", json={"name": "script"}).json()["key"])


def test_openais_client_is_told(bounded) -> None:
    api = openai.OpenAI(base_url=f"{bounded.url}/v1", api_key=key_of(bounded, FOUR[0]), max_retries=0, timeout=120)
    asked = {"model": MODEL, "messages": CAPITAL, "max_tokens": 1}
    for _ in range(2):
        api.chat.completions.create(**asked)
    for ask in (
        lambda: api.chat.completions.create(**asked),
        lambda: api.chat.completions.create(**asked, stream=True),
        lambda: api.chat.completions.create(**asked, extra_headers={"X-LLMSVC-Session": "new"}),
        lambda: api.completions.create(model=MODEL, prompt="x", max_tokens=1),
        lambda: api.responses.create(model=MODEL, input="x", max_output_tokens=16),
        lambda: api.embeddings.create(model=MODEL, input="x"),
    ):
        with pytest.raises(openai.RateLimitError) as refused:
            ask()
        assert 0 < int(refused.value.response.headers["retry-after"]) <= 60
        assert refused.value.body["type"] == "rate_limit_error"
        assert "2 answers a minute" in refused.value.body["message"]
    assert api.models.list().data  # only answers are counted


def test_anthropics_client_is_told(bounded) -> None:
    api = anthropic.Anthropic(base_url=bounded.url, api_key=key_of(bounded, FOUR[1]), max_retries=0, timeout=120)
    asked = {"model": MODEL, "messages": CAPITAL, "max_tokens": 1}
    for _ in range(2):
        api.messages.create(**asked)
    with pytest.raises(anthropic.RateLimitError) as refused:
        api.messages.create(**asked)
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert refused.value.body["error"]["type"] == "rate_limit_error"


def test_scripts_are_told(bounded) -> None:
    client = Client(bounded.url, auth=(FOUR[2], "password"), verbose=False)
    session = client.predict(api_name="/session_create")["id"]
    for _ in range(2):
        client.predict(session, "Hello", max_tokens=1, api_name="/chat")
    answer = client.predict(session, api_name="/session_get")["messages"][-1]["id"]
    for ask in (
        lambda: client.predict(session, "Hello", api_name="/chat"),
        lambda: client.predict(session, answer, api_name="/regenerate"),
        lambda: client.predict(session, api_name="/continue"),
    ):
        with pytest.raises(AppError, match=r"2 answers a minute\. Wait"):
            ask()
    assert len(client.predict(session, api_name="/session_get")["messages"]) == 4
    # Others have their own.
    other = Client(bounded.url, auth=(FOUR[3], "password"), verbose=False)
    session = other.predict(api_name="/session_create")["id"]
    assert other.predict(session, "Hello", max_tokens=1, api_name="/chat")[1]["state"] == "done"


def test_guests_have_less(bounded) -> None:
    guest = Client(bounded.url, verbose=False)
    session = guest.predict(api_name="/session_create")["id"]
    guest.predict(session, "Hello", max_tokens=1, api_name="/chat")
    with pytest.raises(AppError, match="1 answers a minute"):
        guest.predict(session, "Hello", api_name="/chat")


def test_guests_have_few_chats(bounded) -> None:
    guest = httpx.Client(base_url=bounded.url)
    guest.get("/config")

    def create(count: int) -> list[str]:
        posted = [guest.post("/gradio_api/call/session_create", json={"data": [""]}).json() for _ in range(count)]
        return [guest.get(f"/gradio_api/call/session_create/{event['event_id']}").text for event in posted]

    assert not any("event: error" in said for said in create(100))
    (refused,) = create(1)
    assert "event: error" in refused
    assert "100 chats" in refused
