"""Who is asking: two logins, keys and guests, on a service that others can reach."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from clients import CAPITAL, MODEL, PARIS, until
from conftest import App, with_models_of
from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError
from openai import OpenAI

KEY = "a-key-of-the-command-line"
ANN, BOB = ("ann", "one two"), ("bob", "three")


@pytest.fixture(scope="module")
def shared_app(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    """Its model is there, and another app has the data directory of the others."""
    own = with_models_of(data_dir, tmp_path_factory.mktemp("identity"))
    logins = [flag for login in (ANN, BOB) for flag in ("--auth", ":".join(login))]
    running = App(own, *logins, "--api-key", KEY, "--guests").wait()
    yield running
    running.stop()


def page(app: App, login: tuple[str, str]) -> Client:
    return Client(app.url, auth=login, verbose=False)


def by_key(app: App, key: str) -> Client:
    return Client(app.url, headers={"Authorization": f"Bearer {key}"}, verbose=False)


def api(app: App, key: str) -> OpenAI:
    return OpenAI(base_url=f"{app.url}/v1", api_key=key, max_retries=0, timeout=120)


def log_in(app: App, login: tuple[str, str]) -> httpx.Client:
    client = httpx.Client(base_url=app.url, timeout=60)
    client.post("/login", data={"username": login[0], "password": login[1]}).raise_for_status()
    return client


def test_each_login_has_its_own_chats(shared_app) -> None:
    ann, bob = page(shared_app, ANN), page(shared_app, BOB)
    hers = ann.predict(title="Of Ann", api_name="/session_create")["id"]
    assert hers in [row["id"] for row in page(shared_app, ANN).predict(api_name="/session_list")]
    assert bob.predict(api_name="/session_list") == []
    never = "0" * 32
    for name, more in (
        ("get", ()),
        ("rename", ("Mine",)),
        ("delete", ()),
        ("restore", ()),
        ("export", ("json",)),
    ):
        refusals = []
        for session in (hers, never):
            with pytest.raises(AppError) as refused:
                bob.predict(session, *more, api_name=f"/session_{name}")
            refusals.append(str(refused.value))
        assert refusals[0] == refusals[1], name  # it answers as one that does not exist
    assert ann.predict(hers, api_name="/session_get")["title"] == "Of Ann"


def test_a_wrong_login(shared_app) -> None:
    with pytest.raises(ValueError, match="login"):
        page(shared_app, ("ann", "wrong"))
    with pytest.raises(ValueError, match="login"):
        page(shared_app, ("nobody", "wrong"))


def test_nothing_is_shown_without_a_login(tmp_path: Path) -> None:
    app = App(tmp_path / "data", "--auth", ":".join(ANN)).wait("/health")
    try:
        with pytest.raises(AuthenticationError):
            Client(app.url, verbose=False)
        for path in ("/config", "/gradio_api/info", "/v1/models", "/v1/sessions/x/turn", "/metrics", "/nothing"):
            assert httpx.get(app.url + path).status_code == 401, path
        shown = httpx.get(app.url, headers={"Accept": "text/html"})
        assert (shown.status_code, "<form" in shown.text) == (401, True)
        assert httpx.get(app.url).json()["error"]["type"] == "authentication_error"
        wrong = httpx.post(
            f"{app.url}/login", data={"username": "<b>", "password": "x"}, headers={"Accept": "text/html"}
        )
        assert (wrong.status_code, "<b>" in wrong.text) == (400, False)
        client = log_in(app, ANN)
        assert client.get("/config").status_code == 200
        cookie = next(iter(client.cookies.jar))
        assert cookie.has_nonstandard_attr("HttpOnly")
        client.get("/logout")
        assert httpx.get(f"{app.url}/config", cookies={cookie.name: cookie.value}).status_code == 401  # no replay
    finally:
        app.stop()


def test_wrong_passwords_close_a_name_for_a_while(tmp_path: Path) -> None:
    app = App(tmp_path / "data", "--auth", ":".join(ANN), "--auth", ":".join(BOB)).wait("/health")
    try:
        post = lambda name, password: httpx.post(f"{app.url}/login", data={"username": name, "password": password})  # noqa: E731
        assert [post("ann", "guess").status_code for _ in range(6)] == [400] * 5 + [429]
        closed = post(*ANN)
        assert (closed.status_code, int(closed.headers["retry-after"])) == (429, 60)
        assert post(*BOB).status_code == 200
        statuses = [post(f"nobody{n}", "guess").status_code for n in range(30)]
        assert statuses[-1] == 429
    finally:
        app.stop()


def test_logins_survive_a_restart_and_end_with_another_password(tmp_path: Path) -> None:
    app = App(tmp_path / "data", "--auth", ":".join(ANN)).wait("/health")
    client = log_in(app, ANN)
    app.stop()
    app = App(tmp_path / "data", "--auth", ":".join(ANN), port=app.port).wait("/health")
    assert client.get("/config").status_code == 200
    app.stop()
    stored = (tmp_path / "data" / "index.json").read_text()
    assert ANN[1] not in stored
    assert next(iter(client.cookies.jar)).value not in stored
    app = App(tmp_path / "data", "--auth", "ann:another", port=app.port).wait("/health")
    assert client.get("/config").status_code == 401
    app.stop()


def test_the_api_needs_a_key(shared_app) -> None:
    for key in ("none", KEY + "x"):
        with pytest.raises(openai.AuthenticationError) as refused:
            api(shared_app, key).models.list()
        assert refused.value.body["type"] == "authentication_error"
    assert httpx.get(f"{shared_app.url}/v1/models").status_code == 401
    asked = {"model": MODEL, "messages": CAPITAL, "temperature": 0}
    assert api(shared_app, KEY).chat.completions.create(**asked).choices[0].message.content == PARIS
    given = {"model": MODEL, "messages": CAPITAL, "max_tokens": 4}
    assert httpx.post(f"{shared_app.url}/v1/messages", json=given, headers={"x-api-key": KEY}).status_code == 200


def test_keys_are_made_and_revoked(shared_app) -> None:
    bob = log_in(shared_app, BOB)
    made = bob.post("/v1/keys", json={"name": "script"}).json()
    assert [row["id"] for row in bob.get("/v1/keys").json()] == [made["id"]]
    assert "key" not in bob.get("/v1/keys").json()[0]
    assert log_in(shared_app, ANN).delete(f"/v1/keys/{made['id']}").status_code == 404
    with_key = by_key(shared_app, made["key"])
    session = with_key.predict(title="Of Bob", api_name="/session_create")["id"]
    assert session in [row["id"] for row in page(shared_app, BOB).predict(api_name="/session_list")]
    asked = {"model": MODEL, "messages": CAPITAL, "max_tokens": 4, "extra_headers": {"X-LLMSVC-Session": session}}
    api(shared_app, made["key"]).chat.completions.create(**asked)
    with pytest.raises(openai.NotFoundError):
        api(shared_app, KEY).chat.completions.create(**asked)
    assert bob.delete(f"/v1/keys/{made['id']}").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        api(shared_app, made["key"]).models.list()
    assert made["key"] not in (shared_app.data_dir / "index.json.journal").read_text()


def test_what_is_everybodys_is_the_admins(shared_app) -> None:
    ann, bob = page(shared_app, ANN), page(shared_app, BOB)
    before = ann.predict(api_name="/settings_get")
    assert ann.predict({"top_k": 7}, api_name="/settings_set")["top_k"] == 7
    ann.predict({"top_k": before["top_k"]}, api_name="/settings_set")
    with pytest.raises(AppError, match="admin"):
        bob.predict({"top_k": 7}, api_name="/settings_set")
    session = bob.predict(api_name="/session_create")["id"]
    with pytest.raises(AppError, match="no model"):
        bob.predict(session, "Hello", "nobody/nothing", api_name="/chat")  # it would be downloaded
    names = {row["api_name"]: row["id"] for row in log_in(shared_app, BOB).get("/config").json()["dependencies"]}
    body = {"fn_index": names["on_load_model"], "session_hash": "x", "data": ["nobody/nothing", "none"]}
    refused = log_in(shared_app, BOB).post("/gradio_api/run/predict", json=body)
    assert "admin" in refused.text
    for path in ("/metrics", "/openapi.json"):
        assert log_in(shared_app, BOB).get(path).status_code == 403


def test_only_its_own_page_may_use_a_public_link(shared_app) -> None:
    ann = log_in(shared_app, ANN)
    link = {"Host": "abc.gradio.live"}
    assert ann.get("/config", headers={**link, "Origin": "https://abc.gradio.live"}).status_code == 200
    relayed = {"X-Forwarded-Host": "abc.gradio.live", "Origin": "https://abc.gradio.live"}
    assert ann.get("/config", headers=relayed).status_code == 200
    for origin in ("https://evil.example", "null", "http://[", "", "https://abc.gradio.live.evil.example"):
        for method, path in (
            ("POST", "/gradio_api/upload"),
            ("POST", "/gradio_api/queue/join"),
            ("OPTIONS", "/config"),
        ):
            refused = ann.request(method, path, headers={**link, "Origin": origin})
            assert refused.status_code == 403, (origin, path)
            assert "access-control-allow-origin" not in refused.headers


def test_guests_have_a_sandbox_each(shared_app) -> None:
    one, other = (Client(shared_app.url, verbose=False) for _ in range(2))
    session = one.predict(title="Of a guest", api_name="/session_create")["id"]
    assert [row["id"] for row in one.predict(api_name="/session_list")] == [session]
    assert other.predict(api_name="/session_list") == []
    with pytest.raises(AppError, match="no such chat"):
        other.predict(session, api_name="/session_get")
    with pytest.raises(AppError, match="admin"):
        one.predict({"top_k": 7}, api_name="/settings_set")
    guest = httpx.Client(base_url=shared_app.url)
    given = guest.get("/config").headers["set-cookie"]
    assert "HttpOnly" in given
    assert "SameSite=Lax" in given
    assert guest.get("/v1/models").status_code == 401
    assert "Secure" in httpx.get(shared_app.url, headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"]


def test_a_public_service_makes_a_login_and_prints_it(tmp_path: Path) -> None:
    app = App(tmp_path / "data", "--host", "0.0.0.0").wait("/health")
    try:
        assert httpx.get(f"{app.url}/config").status_code == 401
        until(lambda: "password" in app.log.read_text())  # the port is open a moment before
        name, password = re.search(r"name (\S+), password (\S+)", app.log.read_text()).groups()
        assert log_in(app, (name, password)).get("/config").status_code == 200
    finally:
        app.stop()


def test_without_keys_and_logins_there_is_one_owner(app) -> None:
    session = Client(app.url, verbose=False).predict(title="Of all", api_name="/session_create")["id"]
    found: list[Any] = by_key(app, "anything").predict(api_name="/session_list")
    assert session in [row["id"] for row in found]
    assert httpx.get(f"{app.url}/v1/sessions/{session}/export").status_code == 200
    assert json.loads(httpx.get(f"{app.url}/v1/keys").text) == []
