"""Models of other servers: a service in front of two real ones, over the real doors, as users and as scripts see it."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from clients import CAPITAL, MODEL, OSLO, PARIS, STORY, WEATHER, busy, until
from conftest import App
from gradio_client import Client
from gradio_client.exceptions import AppError
from openai import OpenAI
from playwright.sync_api import Browser, expect

REMOTE = f"remote:{MODEL}"
ADMIN, USER = ("ann", "one two"), ("bob", "three")
OUR_KEY, THEIR_KEY = "a-key-of-the-service-in-front", "a-key-of-the-server-behind"
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}}
LONG = {"temperature": 0, "max_tokens": 4000}


class Spare:
    """A second server with the same model, which wants a key; it can be killed and comes back on its port."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.app = App(data, "--api-key", THEIR_KEY)
        self.url = self.app.url

    def kill(self) -> None:
        self.app.process.send_signal(signal.SIGKILL)
        self.app.process.wait()

    def start(self) -> None:
        self.app = App(self._data, "--api-key", THEIR_KEY, port=self.app.port)


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Spare]:
    from llmsvc.models.catalogue import Catalogue

    data = tmp_path_factory.mktemp("spare") / "data"
    shutil.copytree(model_dir, Catalogue(data / "models").folder(MODEL), copy_function=os.link)
    running = Spare(data)
    running.app.wait()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def front(app: App, spare: Spare, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """It has no model of its own, and answers with one of the server that it was given."""
    flags = ["--remote", app.url, "--model", REMOTE, "--api-key", OUR_KEY]
    for login in (ADMIN, USER):
        flags += ["--auth", ":".join(login)]
    running = App(tmp_path_factory.mktemp("front") / "data", *flags).wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def admin(front: App) -> Client:
    return Client(front.url, auth=ADMIN, verbose=False)


@pytest.fixture
def session(admin: Client) -> str:
    return chat(admin)


@pytest.fixture(scope="module")
def api(front: App) -> OpenAI:
    return OpenAI(base_url=f"{front.url}/v1", api_key=OUR_KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def ask(api: OpenAI) -> Callable[..., Any]:
    def ask(messages: list[Any], **options: Any) -> Any:
        return api.chat.completions.create(model=REMOTE, messages=messages, **{"temperature": 0, **options})

    return ask


def chat(client: Client) -> str:
    """A new one, with a name: the model need not make one, which would be a request of its own."""
    return client.predict(title="A test", api_name="/session_create")["id"]


def servers(client: Client) -> dict[str, dict[str, Any]]:
    return {row["url"]: row for row in client.predict(api_name="/remote_list")}


def begun(client: Client, session: str) -> Any:
    """The job of a long answer that has begun."""
    job = client.submit(session, STORY[0]["content"], **LONG, api_name="/chat")
    for text, _ in job:
        if len(text) > 20:
            return job
    raise AssertionError("it ended too early")


def continued(client: Client, session: str, text: str) -> str:
    """Some more of an answer that was cut, which is stopped then."""
    job = client.submit(session, api_name="/continue")
    for more, _ in job:
        if len(more) > len(text) + 20:
            client.predict(session, api_name="/stop")
            return job.result(timeout=60)[0]
    raise AssertionError("it did not go on")


def test_the_catalogue_has_it_like_a_model_of_this_machine(front: App, admin: Client, api: OpenAI) -> None:
    (listed,) = [row for row in admin.predict(api_name="/model_catalog") if row["id"] == REMOTE]
    assert (listed["source"], listed["context"], listed["default"]) == ("remote", 8192, True)
    (loaded,) = admin.predict(api_name="/model_list")  # and nothing was loaded here
    assert (loaded["id"], loaded["state"], loaded["device"]) == (REMOTE, "ready", "remote")
    assert REMOTE in [model.id for model in api.models.list()]
    assert admin.predict(REMOTE, api_name="/model_forecast")["fits"]
    for endpoint in ("/model_unload", "/model_delete", "/model_pin"):
        with pytest.raises(AppError, match="Remove that server instead"):
            admin.predict(REMOTE, api_name=endpoint)
    assert admin.submit(REMOTE, api_name="/model_load").result(timeout=60)["state"] == "ready"


def test_a_chat_is_streamed_from_it(admin: Client, session: str) -> None:
    job = admin.submit(session, CAPITAL[0]["content"], temperature=0, api_name="/chat")
    text, status = job.result(timeout=120)
    assert (text, status["state"]) == (PARIS, "done")
    assert status["context"]["estimated"]
    assert status["usage"]["completion_tokens"] == 8
    assert status["usage"]["prompt_tokens"] > 20  # as the server counts, with its template
    again, _ = admin.predict(session, "And of Japan?", temperature=0, api_name="/chat")
    assert "Tokyo" in again  # it was told of the first question
    job = admin.submit(session, STORY[0]["content"], temperature=0, max_tokens=60, api_name="/chat")
    job.result(timeout=120)
    assert len({part for part, _ in job.outputs()}) > 2


def test_stop_reaches_the_other_server(app: App, admin: Client, session: str) -> None:
    job = begun(admin, session)
    until(lambda: busy(app) == 1)
    assert admin.predict(session, api_name="/stop")["state"] == "stopped"
    text, status = job.result(timeout=60)
    assert status["state"] == "stopped"
    until(lambda: busy(app) == 0)
    assert continued(admin, session, text).startswith(text)


def test_the_openai_client(app: App, api: OpenAI, ask: Callable[..., Any]) -> None:
    answer = ask(CAPITAL)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (PARIS, "stop")
    assert answer.usage.completion_tokens == 8
    chunks = list(ask(CAPITAL, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == PARIS
    begun = [*CAPITAL, {"role": "assistant", "content": "The capital of"}]
    assert ask(begun).choices[0].message.content == " France is Paris."
    assert ask(CAPITAL, stop=["of France"]).choices[0].message.content == "The capital "
    assert ask(STORY, max_tokens=3).choices[0].finish_reason == "length"
    found = ask(CAPITAL, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(one.token for one in found) == PARIS
    assert all(len(one.top_logprobs) == 2 for one in found)
    raw = api.completions.create(model=REMOTE, prompt="The capital of France is", temperature=0, max_tokens=5)
    assert "Paris" in raw.choices[0].text
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    said = ask([{"role": "user", "content": "Anna is 31."}], response_format=wanted, max_tokens=30)
    assert isinstance(json.loads(said.choices[0].message.content)["age"], int)
    called = ask([OSLO], tools=[TOOL], tool_choice="required").choices[0].message.tool_calls[0].function
    assert (called.name, set(json.loads(called.arguments))) == ("get_weather", {"city", "unit"})
    for wrong in ({"extra_body": {"top_k": 5}}, {"extra_body": {"regex": "a+"}}):
        with pytest.raises(openai.BadRequestError, match="other servers do not take"):
            ask(CAPITAL, **wrong)
    with pytest.raises(openai.BadRequestError, match="on another server"):
        api.embeddings.create(model=REMOTE, input="Hello")
    with pytest.raises(openai.NotFoundError, match="no model"):
        api.chat.completions.create(model="remote:nobody/has-it", messages=CAPITAL)


def test_a_client_that_goes_away_ends_it_there(app: App, ask: Callable[..., Any]) -> None:
    stream = ask(STORY, stream=True, max_tokens=1000)
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    until(lambda: busy(app) == 1)
    stream.close()
    until(lambda: busy(app) == 0)


class Odd(BaseHTTPRequestHandler):
    """A server that sends on what it is asked, or says that it has one model."""

    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers))
        body = b'{"data": [{"id": "odd"}]}' if not self.path.startswith("/away") else b""
        self.send_response(200 if body else 302)
        self.send_header("Location", "/v1/models")
        self.send_header("Set-Cookie", "odd=1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[ThreadingHTTPServer]:
    Odd.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://127.0.0.1", "no address of a server"),
        ("file:///etc/passwd", "no address of a server"),
        ("nonsense", "no address of a server"),
        ("http://127.0.0.1:1", r"does not answer .*Check the address"),
        ("{app}/nowhere", "answers 404"),
        ("{odd}/away", "sends on to /v1/models, which is not followed"),
        ("{spare}", "wants an API key"),
    ],
)
def test_a_wrong_address_is_a_sentence(
    admin: Client, app: App, spare: Spare, odd: Any, url: str, sentence: str
) -> None:
    given = url.format(app=app.url, spare=spare.url, odd=f"http://127.0.0.1:{odd.server_port}")
    before = servers(admin)
    with pytest.raises(AppError, match=sentence) as error:
        admin.predict(given, api_name="/remote_add")
    assert "Traceback" not in str(error.value)
    assert servers(admin) == before
    assert len(Odd.seen) == (1 if "away" in url else 0)


def test_only_the_admin_adds_and_nobody_sees_a_key(front: App, admin: Client, odd: Any, session: str) -> None:
    user, url = Client(front.url, auth=USER, verbose=False), f"http://127.0.0.1:{odd.server_port}"
    for endpoint, given in (("/remote_add", (url,)), ("/remote_list", ()), ("/remote_remove", (url,))):
        with pytest.raises(AppError, match="Only the admin"):
            user.predict(*given, api_name=endpoint)
    assert Odd.seen == []
    row = admin.predict(f"{url}/v1/", "their-own-key", api_name="/remote_add")
    assert (row["url"], row["models"], row["key"], row["state"]) == (url, ["odd"], True, "ready")
    assert admin.predict(url, "their-own-key", api_name="/remote_add") == row
    assert [asked["Authorization"] for asked in Odd.seen] == ["Bearer their-own-key"] * 2
    assert "Cookie" not in Odd.seen[1]
    assert "their-own-key" not in json.dumps([row, *servers(admin).values(), admin.predict(api_name="/model_list")])
    own = chat(user)
    text, _ = user.predict(own, CAPITAL[0]["content"], REMOTE, temperature=0, api_name="/chat")
    assert text == PARIS
    odd.shutdown()
    odd.server_close()
    with pytest.raises(AppError, match=r"No server that has odd answers now\..*choose another model"):
        admin.predict(session, "Hello", "remote:odd", api_name="/chat")
    assert servers(admin)[url]["state"] == "unreachable"
    admin.predict(url, api_name="/remote_remove")
    assert url not in servers(admin)
    with pytest.raises(AppError, match='No server has "odd" now'):
        admin.predict(session, "Hello", "remote:odd", api_name="/chat")
    with pytest.raises(AppError, match="given with --remote"):
        admin.predict(next(iter(servers(admin))), api_name="/remote_remove")


def test_the_page_adds_a_server_chats_and_removes_it(browser: Browser, front: App, spare: Spare) -> None:
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    page.goto(front.url)
    page.fill("[name=username]", ADMIN[0])
    page.fill("[name=password]", ADMIN[1])
    page.keyboard.press("Enter")
    expect(page.locator("#composer textarea")).to_be_visible()
    page.get_by_role("tab", name="Models").click()
    card = page.locator("#model-list .card", has_text=REMOTE)
    expect(card).to_contain_text("1 of 1 server answers")
    page.get_by_role("button", name="Remote servers").click()
    page.get_by_label("Address").fill(spare.url)
    page.get_by_label("API key").fill(THEIR_KEY)
    page.click("#add-server")
    server = page.locator("#servers .card", has_text=spare.url)
    expect(server).to_contain_text("with a key")
    expect(page.get_by_label("API key")).to_have_value("")
    expect(card).to_contain_text("2 of 2 servers answer")
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#chip")).to_contain_text("on another server")
    page.fill("#composer textarea", CAPITAL[0]["content"])
    page.keyboard.press("Enter")
    expect(page.locator("#recent .usage").last).to_contain_text(
        "tok/s", timeout=120_000
    )  # it is drawn, and may be long
    page.get_by_role("tab", name="Models").click()
    server.get_by_role("button", name="Remove").click()
    expect(server).to_have_count(0)
    expect(card).to_contain_text("1 of 1 server answers")
    page.close()


def test_one_of_two_servers_is_killed(app: App, spare: Spare, admin: Client, ask: Callable[..., Any]) -> None:
    assert admin.predict(spare.url, THEIR_KEY, api_name="/remote_add")["models"] == [MODEL]
    (model,) = [row for row in admin.predict(api_name="/model_list") if row["id"] == REMOTE]
    assert model["stage"] == "2 of 2 servers answer"
    for row in admin.predict(api_name="/session_list"):  # the page's chat may be getting its title now
        admin.predict(row["id"], api_name="/session_delete")
    until(lambda: [row["running"] for row in servers(admin).values()] == [0, 0])
    kept, cut = chat(admin), chat(admin)
    running, lost = begun(admin, kept), begun(admin, cut)  # each is sent to the less busy server, so to both in turns
    stories = [ask(STORY, stream=True, max_tokens=4000) for _ in range(2)]
    for story in stories:
        next(chunk for chunk in story if chunk.choices[0].delta.content)
    assert [row["running"] for row in servers(admin).values()] == [2, 2]
    spare.kill()

    text, status = lost.result(timeout=60)
    assert status["state"] == "interrupted"
    assert "was lost in the middle" in status["error"]
    stored = admin.predict(cut, api_name="/session_get")["messages"][-1]
    assert (stored["content"], stored["state"]) == (text, "interrupted")
    with pytest.raises(openai.APIError, match="was lost in the middle"):
        for _ in stories[1]:
            pass
    next(chunk for chunk in stories[0] if chunk.choices[0].delta.content)  # the other server's go on
    stories[0].close()
    assert admin.predict(kept, api_name="/stop")["state"] == running.result(timeout=60)[1]["state"] == "stopped"

    assert servers(admin)[spare.url]["state"] == "unreachable"
    assert ask(CAPITAL).choices[0].message.content == PARIS
    assert continued(admin, cut, text).startswith(text)

    spare.start()
    until(lambda: servers(admin)[spare.url]["state"] == "ready")


def test_a_server_that_died_in_silence_costs_no_question(spare: Spare, admin: Client, ask: Callable[..., Any]) -> None:
    story = ask(STORY, stream=True, max_tokens=1000)
    next(chunk for chunk in story if chunk.choices[0].delta.content)
    spare.kill()
    assert ask(CAPITAL).choices[0].message.content == PARIS
    assert servers(admin)[spare.url]["state"] == "unreachable"
    story.close()


def test_servers_are_kept_over_a_restart(front: App, spare: Spare, admin: Client) -> None:
    """With what is known of those that do not answer."""
    front.stop()
    again = App(front.data_dir, "--auth", ":".join(ADMIN), "--model", REMOTE).wait("/health")
    try:
        client = Client(again.url, auth=ADMIN, verbose=False)
        (row,) = servers(client).values()
        assert (row["url"], row["models"], row["key"]) == (spare.url, [MODEL], True)
        assert REMOTE in [row["id"] for row in client.predict(api_name="/model_catalog")]
        until(lambda: servers(client)[spare.url]["state"] == "unreachable")
        spare.start()
        until(lambda: servers(client)[spare.url]["state"] == "ready")
        assert client.predict(chat(client), CAPITAL[0]["content"], REMOTE, temperature=0, api_name="/chat")[0] == PARIS
    finally:
        again.stop()
