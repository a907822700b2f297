"""What an attacker tries, against a service that has a share link's name: logins, a key, guests, the real model.

``pytest -k attacks`` counts the cases.
"""

import http.client
import json
import pickle
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import MODEL, STORY, until
from conftest import FLAGS, App, with_models_of
from playwright.sync_api import Page, sync_playwright

pytestmark = pytest.mark.attack

LINK = "abc123.gradio.live"
EVIL = "https://evil.example"
KEY = "a-key-of-the-command-line"
ANN, BOB = ("ann", "one two"), ("bob", "three")
SECRET = "the harbour freezes in April"
NEVER = "0" * 32


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    own = with_models_of(data_dir, tmp_path_factory.mktemp("attacked"))
    logins = [flag for login in (ANN, BOB) for flag in ("--auth", ":".join(login))]
    running = App(own, *logins, "--api-key", KEY, "--guests", "--max-upload", "1mb").wait()
    yield running
    running.stop()


def visitor(app: App, login: tuple[str, str] | None = None, **headers: str) -> httpx.Client:
    """As a browser on the share link: logged in, or a guest."""
    client = httpx.Client(base_url=app.url, timeout=60, headers={"Host": LINK, **headers})
    if login:
        client.post("/login", data={"username": login[0], "password": login[1]}).raise_for_status()
    elif not headers:
        client.get("/config").raise_for_status()
    return client


def call(client: httpx.Client, name: str, **values: Any) -> tuple[Any, ...]:
    """The last event of a named endpoint."""
    begun = client.post(f"/gradio_api/call/v2/{name}", json=values)
    if begun.status_code != 200:
        return begun.status_code, begun.text
    events = client.get(f"/gradio_api/call/{name}/{begun.json()['event_id']}").text
    kind, data = re.findall(r"^event: (.*)\ndata: (.*)$", events, re.MULTILINE)[-1]
    return kind, json.loads(data)


def made(client: httpx.Client, name: str, **values: Any) -> Any:
    kind, data = call(client, name, **values)
    assert kind == "complete", data
    return data[0]


def raw(app: App, target: str, client: httpx.Client, method: str = "GET") -> tuple[int, bytes]:
    """A request whose target nobody cleans on the way."""
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
    connection.putrequest(method, target, skip_host=True)
    for name, value in {"Host": LINK, "Cookie": cookies}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


class Hers:
    """What Ann has: nobody else may read or change it."""

    def __init__(self, app: App) -> None:
        self.client = visitor(app, ANN)
        self.id = made(self.client, "session_create", title=f"{SECRET} (title)")["id"]
        text = made(self.client, "chat", session_id=self.id, message=f"{SECRET} (message)", max_tokens=4)
        assert isinstance(text, str)
        uploads = self.client.post("/gradio_api/upload", files={"files": ("plan.txt", f"{SECRET} (file)".encode())})
        self.upload = uploads.json()[0]
        self.file = made(self.client, "file_upload", file=file_data(self.upload), session_id=self.id)["id"]
        until(lambda: made(self.client, "file_get", session_id=self.id, file_id=self.file)["state"] == "ready")
        self.key = self.client.post("/v1/keys", json={"name": f"{SECRET} (key)"}).json()
        self.message, self.answer = (row["id"] for row in self.whole()["messages"])
        self.turn = self.whole()["messages"][1]["turn_id"]

    def whole(self) -> dict[str, Any]:
        return dict(made(self.client, "session_get", session_id=self.id))


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture(scope="module")
def hers(shared) -> Hers:
    return Hers(shared)


@pytest.fixture(scope="module")
def bob(shared) -> httpx.Client:
    return visitor(shared, BOB)


@pytest.fixture(scope="module")
def guest(shared) -> httpx.Client:
    return visitor(shared)


# Files of the machine


@pytest.mark.parametrize(
    "target",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file={data}/index.json",
        "/gradio_api/file={data}/index.json.journal",
        "/gradio_api/%66ile={data}/index.json",
        "/gradio_api//file={data}/index.json",
        "/file={data}/index.json",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static//etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/custom_component/x/client/component/..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/stream/..%2f..%2fetc/1/1/passwd.ts",
        "/gradio_api/proxy=file:///etc/passwd",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link?session_hash=x",
        "/v1/sessions/..%2f..%2findex.json/export",
        "/v1/sessions/..%2f..%2findex.json/stream",
        "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        "/pwa_icon/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_file_is_served(shared, bob, target) -> None:
    status, body = raw(shared, target.format(data=shared.data_dir), bob)
    assert status in (400, 401, 403, 404, 405, 422), (status, body[:200])
    assert b"root:" not in body
    assert b"credentials" not in body


@pytest.mark.parametrize("name", ["../../../evil.txt", "/etc/cron.d/evil.txt", "..\\..\\evil.txt", "%2e%2e%2fevil.txt"])
def test_a_name_of_an_upload_is_no_path(shared, bob, name) -> None:
    before = set(shared.data_dir.parent.parent.rglob("*evil*"))
    (path,) = bob.post("/gradio_api/upload", files={"files": (name, b"text")}).json()
    assert not set(shared.data_dir.parent.parent.rglob("*evil*")) - before - {Path(path)}
    session = made(bob, "session_create")["id"]
    row = made(bob, "file_upload", file=file_data(path), session_id=session)
    assert not set("/\\") & set(row["name"])
    kept = [path for path in shared.data_dir.rglob("*") if row["id"] in path.name]
    assert kept
    assert all(path.parent.name == session for path in kept)


def test_another_owners_upload_is_not_served(shared, hers, bob) -> None:
    (path,) = hers.client.post("/gradio_api/upload", files={"files": ("mine.txt", SECRET.encode())}).json()
    for client in (hers.client, bob):
        status, body = raw(shared, f"/gradio_api/file={path}", client)
        assert (status, SECRET.encode() in body) == (404, False)


# Another owner's ids

THEIRS: dict[str, dict[str, Any]] = {
    "session_get": {},
    "session_rename": {"title": "Mine now"},
    "session_delete": {},
    "session_restore": {},
    "session_export": {"format": "markdown"},
    "session_settings": {"values": {"temperature": 0}},
    "chat": {"message": "What did I say?"},
    "regenerate": {"message_id": "message"},
    "edit": {"message_id": "answer", "text": "Changed"},
    "continue": {},
    "attach": {"offset": 0},
    "stop": {},
    "branch_select": {"message_id": "answer"},
    "queue_edit": {"turn_id": "turn", "text": "Changed"},
    "queue_remove": {"turn_id": "turn"},
    "queue_send": {},
    "file_list": {},
    "file_get": {"file_id": "file"},
    "file_remove": {"file_id": "file"},
    "file_retry": {"file_id": "file", "encoding": "utf-8"},
    "file_upload": {"file": "upload"},
}
INNER = ("regenerate", "edit", "branch_select", "queue_edit", "queue_remove", "file_get", "file_remove", "file_retry")


def test_every_endpoint_that_takes_a_chat_is_tried(shared, hers) -> None:
    endpoints = hers.client.get("/gradio_api/info").json()["named_endpoints"]
    taking = {
        name.strip("/")
        for name, endpoint in endpoints.items()
        if any(parameter["parameter_name"] == "session_id" for parameter in endpoint["parameters"])
    }
    assert taking == set(THEIRS)


@pytest.mark.parametrize("name", THEIRS)
def test_another_owners_chat_answers_as_none(hers, bob, guest, name) -> None:
    before = hers.whole()
    for client in (bob, guest):
        answers = []
        for id_ in (hers.id, NEVER):
            values = {key: getattr(hers, value, value) if isinstance(value, str) else value
                      for key, value in THEIRS[name].items()}  # fmt: skip
            if name == "file_upload":
                (path,) = client.post("/gradio_api/upload", files={"files": ("x.txt", b"x")}).json()
                values = {"file": file_data(path)}
            answers.append(call(client, name, session_id=id_, **values))
        assert answers[0] == answers[1]
        assert answers[0][0] == "error"
    assert hers.whole() == before


@pytest.mark.parametrize("name", INNER)
def test_another_owners_message_or_file_within_ones_own_chat(hers, bob, name) -> None:
    before, own = hers.whole(), made(bob, "session_create")["id"]
    (inner,) = (key for key in THEIRS[name] if key.endswith("_id"))
    values = {key: value for key, value in THEIRS[name].items() if key != inner}
    theirs = call(bob, name, session_id=own, **values, **{inner: getattr(hers, THEIRS[name][inner])})
    assert theirs == call(bob, name, session_id=own, **values, **{inner: NEVER})
    assert theirs[0] == "error"
    assert hers.whole() == before


@pytest.mark.parametrize("path", ["stream", "turn", "export", "export?format=markdown"])
def test_another_owners_chat_by_address(hers, bob, guest, path) -> None:
    for client in (bob, guest, httpx.Client(base_url=bob.base_url, headers={"Authorization": f"Bearer {KEY}"})):
        theirs, none = (client.get(f"/v1/sessions/{id_}/{path}") for id_ in (hers.id, NEVER))
        assert (theirs.status_code, theirs.text) == (none.status_code, none.text) == (404, none.text)
    assert SECRET in hers.client.get(f"/v1/sessions/{hers.id}/{path}").text or path in ("stream", "turn")


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
def test_another_owners_chat_by_the_header(hers, bob, path) -> None:
    before = hers.whole()
    body = {"model": MODEL, "messages": STORY, "input": "What did I say?", "max_tokens": 4, "max_output_tokens": 16}
    body.pop("messages" if path == "responses" else "input")
    answers = [bob.post(f"/v1/{path}", json=body, headers={"X-LLMSVC-Session": id_}) for id_ in (hers.id, NEVER)]
    assert answers[0].status_code == 404
    assert answers[0].text == answers[1].text
    assert hers.whole() == before


def test_another_owners_key(hers, bob) -> None:
    assert SECRET not in bob.get("/v1/keys").text
    theirs, none = bob.delete(f"/v1/keys/{hers.key['id']}"), bob.delete(f"/v1/keys/{'0' * 16}")
    assert (theirs.status_code, theirs.text) == (404, none.text)
    assert httpx.get(f"{bob.base_url}/v1/models", headers={"x-api-key": hers.key["key"]}).status_code == 200


@pytest.mark.parametrize("name", ["memory_set", "memory_delete"])
def test_another_owners_fact(hers, bob, guest, name) -> None:
    fact = made(hers.client, "memory_set", id="", text=f"{SECRET} (fact)")["id"]
    values = {"text": "Changed"} if name == "memory_set" else {}
    for client in (bob, guest):
        theirs, none = (call(client, name, id=id_, **values) for id_ in (fact, NEVER))
        assert theirs == none
        assert theirs[0] == "error"
        assert SECRET not in str(call(client, "memory_list"))
    assert {"id": fact, "text": f"{SECRET} (fact)"} in made(hers.client, "memory_list")["facts"]


def dependencies(client: httpx.Client) -> list[dict[str, Any]]:
    return [row for row in client.get("/config").json()["dependencies"] if row["backend_fn"]]


@pytest.mark.parametrize("action", ["open", "rename", "delete", "again", "go", "edit", "file-open", "file-summary"])
def test_the_pages_own_events_with_another_owners_ids(hers, bob, action) -> None:
    """Every handler of the page, whatever it was made for."""
    before, seen = hers.whole(), 0
    for row in dependencies(bob):
        if row["api_visibility"] != "private":
            continue
        for id_ in (hers.id, hers.message, hers.file):
            data: list[Any] = [hers.id, *[{"text": "", "files": []}] * (len(row["inputs"]) - 1)]
            body = {"fn_index": row["id"], "session_hash": "of-bob", "data": data[: len(row["inputs"])]}
            event = {"action": action, "id": id_, "title": "Mine now", "text": ""}
            answer = bob.post("/gradio_api/run/predict", json={**body, "event_data": event})
            assert SECRET not in answer.text
            seen += 1
    assert seen > 30
    assert hers.whole() == before


def test_a_guessed_id_of_an_upload_shows_nothing(shared, hers, bob) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="the harbour.txt"\r\n\r\n' + b"x" * 1000
    )  # it does not end, so that it can be watched
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in hers.client.cookies.jar)
    head = (
        f"POST /gradio_api/upload?upload_id=guessed HTTP/1.1\r\nHost: {LINK}\r\nCookie: {cookies}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        connection.sendall(head.encode() + body)

        def watched(client: httpx.Client) -> str:
            with client.stream("GET", "/gradio_api/upload_progress?upload_id=guessed") as answer:
                return next((line for line in answer.iter_lines() if "update" in line or "done" in line), "")

        assert "the harbour" in watched(hers.client)
        with pytest.raises(httpx.ReadTimeout):  # as one that does not exist: it waits
            bob.get("/gradio_api/upload_progress?upload_id=guessed", timeout=1)


# Other sites


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "", f"https://{LINK}.evil.example", f"https://evil-{LINK}", "file://"]
)
@pytest.mark.parametrize(
    "path", ["/", "/config", "/v1/chat/completions", "/gradio_api/upload", "/gradio_api/queue/join"]
)
def test_a_foreign_origin(bob, origin, path) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        refused = bob.request(method, path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/x-www-form-urlencoded", b"message=x"),
        ("text/plain", b'{"fn_index": 1, "data": ["x"], "name": "x"}'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b--\r\n',
        ),
    ],
)
def test_a_form_of_another_site(bob, kind, content) -> None:
    paths = ("/v1/chat/completions", "/v1/keys", "/gradio_api/call/session_create", "/gradio_api/run/predict", "/login")
    marks = ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    for path in paths:
        for mark in marks:
            refused = bob.post(path, content=content, headers={"Content-Type": kind, **mark})
            assert refused.status_code == 403, (path, mark)
        if path != "/login":  # from a browser that says nothing of where it comes from
            assert bob.post(path, content=content, headers={"Content-Type": kind}).status_code in (400, 415, 422)


@pytest.mark.parametrize("path", ["/logout", "/v1/keys", "/v1/sessions/{id}/export", "/gradio_api/info"])
def test_a_link_from_another_site_leads_to_the_page_only(hers, path) -> None:
    marks = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert hers.client.get(path.format(id=hers.id), headers=marks).status_code == 403
    assert hers.client.get("/", headers=marks).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
        "127.0.0.1@evil.example",
        "",
    ],
)
def test_a_rebound_name_where_nobody_logs_in(app, host) -> None:
    for more in ({}, {"X-Forwarded-Host": f"127.0.0.1:{app.port}"}, {"Origin": app.url}):
        headers = {"Host": host.format(port=app.port), **more}
        for path in ("/config", "/v1/models", "/gradio_api/info"):
            assert httpx.get(app.url + path, headers=headers).status_code in (400, 403)


def test_a_rebound_name_where_logins_are(shared, bob) -> None:
    """It is answered as a stranger: a browser sends it no cookie of the true name."""
    for path in ("/v1/models", "/v1/keys", "/metrics", "/openapi.json"):
        stranger = httpx.get(shared.url + path, headers={"Host": "evil.example", "X-Forwarded-For": "127.0.0.1"})
        assert stranger.status_code == 401


# Text that wants to be more

SCRIPTS = [
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "</script><script>window.pwned=1</script>",
    "[x](javascript:window.pwned=1)",
    "<a href='javascript:window.pwned=1'>x</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "$\\href{javascript:window.pwned=1}{x}$",
    "<details open ontoggle=window.pwned=1>x</details>",
]


@pytest.fixture(scope="module")
def browsing(shared) -> Iterator[Page]:
    """Bob's browser on the share link, and the address bar's name for it."""
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {LINK} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*FLAGS, rules])
        page = browser.new_page()
        page.goto(f"http://{LINK}:{shared.port}/login")
        page.get_by_label("Name").fill(BOB[0])
        page.get_by_label("Password").fill(BOB[1])
        page.get_by_role("button", name="Log in").click()
        page.locator("#composer textarea").wait_for()
        yield page
        browser.close()


def shown(page: Page, session: str) -> None:
    """Open a chat, and all that can be opened in it."""
    address = page.url.split("#")[0]
    page.goto("about:blank")
    page.goto(f"{address}#{session}")
    page.get_by_text("the end of it").wait_for()
    for link in page.get_by_text("x", exact=True).all():
        link.click(no_wait_after=True, force=True)
    page.wait_for_function("[...document.images].every((image) => image.complete)")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_runs_of_an_answer_a_title_a_name(bob, browsing, script) -> None:
    said = [{"role": role, "content": script} for role in ("user", "assistant")]
    end = {"role": "assistant", "content": "the end of it", "model": script, "error": script}
    text = json.dumps({"title": script, "messages": [*said, end]})
    session = made(bob, "session_import", text=text)["id"]
    (path,) = bob.post(
        "/gradio_api/upload", files={"files": (f"{script.replace('/', '')}.txt", script.encode())}
    ).json()
    made(bob, "file_upload", file=file_data(path), session_id=session)
    made(bob, "session_settings", session_id=session, values={"system": script})
    shown(browsing, session)
    browsing.locator("[data-act=file-open]").first.click()
    assert browsing.evaluate("window.pwned") is None
    made(bob, "session_delete", session_id=session)


def test_no_script_runs_of_what_went_wrong(bob, browsing) -> None:
    """Names that were typed come back in notes."""
    for script in SCRIPTS[:2]:
        browsing.get_by_role("tab", name="Models").click()
        browsing.get_by_label("Load a model").fill(f"{script}/x")
        browsing.get_by_label("Load a model").press("Tab")
        browsing.locator("#forecast .over").wait_for()
        assert browsing.evaluate("window.pwned") is None
    browsing.get_by_role("tab", name="Chat").click()


@pytest.mark.parametrize("host", ['x"><script>pwned=1</script>', "x';pwned=1;'", "javascript:pwned=1"])
def test_no_script_comes_from_the_name_of_the_host(shared, host) -> None:
    for name in ("Host", "X-Forwarded-Host", "X-Forwarded-Proto"):
        answer = httpx.get(shared.url, headers={"Host": LINK, name: host})
        assert "<script>pwned" not in answer.text
        assert "';pwned" not in answer.text


@pytest.mark.parametrize(
    "leak",
    [
        "![x]({url}/markdown?q=secret)",
        "<img src={url}/html> <video src={url}/video></video> <audio src={url}/audio></audio>",
        "<iframe src={url}/frame></iframe> <object data={url}/object></object> <embed src={url}/embed>",
        "<style>body{{background:url({url}/style)}}</style><link rel=stylesheet href={url}/link>",
        "<div style='background:url({url}/inline)'>x</div>",
        "<form action={url}/form><button>x</button></form><meta http-equiv=refresh content='0;url={url}/meta'>",
        "<link rel=prefetch href={url}/prefetch><link rel=preconnect href={url}/> <base href={url}/>",
    ],
)
def test_no_request_leaves_the_page(bob, browsing, elsewhere, leak) -> None:
    url, asked = elsewhere
    said = [{"role": role, "content": leak.format(url=url)} for role in ("user", "assistant")]
    text = json.dumps({"title": "Leak", "messages": [*said, {"role": "assistant", "content": "the end of it"}]})
    session = made(bob, "session_import", text=text)["id"]
    shown(browsing, session)
    assert LINK in browsing.url
    assert asked == []
    made(bob, "session_delete", session_id=session)


# Addresses that the service should fetch

FETCHES = {
    "path": lambda url: file_data(f"{url}/path"),
    "url": lambda url: file_data("x.txt", url=f"{url}/url"),
    "no meta": lambda url: {"path": f"{url}/no-meta", "url": f"{url}/no-meta"},
    "text": lambda url: f"{url}/text",
    "redirect of the hub": lambda url: file_data("https://huggingface.co/x"),
    "metadata of a cloud": lambda url: file_data("http://169.254.169.254/latest/meta-data"),
    "file of the machine": lambda url: file_data("/etc/passwd"),
    "file by address": lambda url: file_data("file:///etc/passwd"),
    "store": lambda url: file_data("{data}/index.json"),
}


@pytest.mark.parametrize("kind", FETCHES)
def test_an_upload_is_no_address(shared, bob, elsewhere, kind) -> None:
    url, asked = elsewhere
    given = json.loads(json.dumps(FETCHES[kind](url)).replace("{data}", str(shared.data_dir)))
    session = made(bob, "session_create")["id"]
    assert call(bob, "file_upload", file=given, session_id=session)[0] == "error"
    assert made(bob, "file_list", session_id=session) == []
    assert asked == []


def test_the_pages_own_uploads_are_no_addresses(bob, elsewhere) -> None:
    url, asked = elsewhere
    for row in dependencies(bob):
        for data in (file_data(f"{url}/event"), [file_data(f"{url}/event")], {"text": "x", "files": [file_data(url)]}):
            body = {"fn_index": row["id"], "session_hash": "of-bob", "data": [data] * len(row["inputs"])}
            bob.post("/gradio_api/run/predict", json=body)
    assert asked == []


@pytest.mark.parametrize(
    "model",
    ["{url}/model", "{url}", "//{url}", "file:///etc", "git+{url}/x", "..", "a/../b", "nobody/nothing"],
)
def test_a_model_is_no_address(hers, bob, elsewhere, model) -> None:
    url, asked = elsewhere
    model, session = model.format(url=url), made(bob, "session_create")["id"]
    assert call(bob, "chat", session_id=session, message="Hello", model=model)[0] == "error"
    assert call(bob, "model_forecast", model=model)[0] == "error"
    assert call(bob, "model_load", model=model)[0] == "error"
    assert bob.post("/v1/chat/completions", json={"model": model, "messages": STORY}).status_code == 404
    assert bob.post("/v1/embeddings", json={"model": model, "input": "x"}).status_code == 404
    if model != "nobody/nothing":  # the admin may ask the hub for that one
        assert call(hers.client, "model_load", model=model)[0] == "error"
    cut = {"role": "assistant", "content": "I", "state": "stopped", "model": model}
    text = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}, cut]})
    brought = made(bob, "session_import", text=text)
    assert brought["model"] == MODEL
    assert made(bob, "session_get", session_id=brought["id"])["messages"][1]["model"] == ""
    assert asked == []


def test_a_picture_in_a_message_is_not_fetched(bob, elsewhere) -> None:
    url, asked = elsewhere
    picture = {"type": "image_url", "image_url": {"url": f"{url}/picture"}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [picture]}], "max_tokens": 4}
    assert bob.post("/v1/chat/completions", json=body).status_code in (400, 422)
    source = {"type": "image", "source": {"type": "url", "url": f"{url}/picture"}}
    body["messages"] = [{"role": "user", "content": [source]}]
    assert bob.post("/v1/messages", json=body).status_code in (400, 422)
    assert asked == []


@pytest.mark.parametrize("path", ["file={url}/x", "proxy={url}/x", "file=https://huggingface.co/robots.txt"])
def test_nothing_is_fetched_for_others(shared, bob, elsewhere, path) -> None:
    url, asked = elsewhere
    assert raw(shared, f"/gradio_api/{path.format(url=url)}", bob)[0] == 404
    assert asked == []


# Models that want to run code


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "trap", ["pytorch_model.bin", "model.safetensors", "config.json", "tokenizer_config.json", "training_args.pt"]
)
def test_a_model_runs_no_code(hers, model_dir, tmp_path, trap) -> None:
    folder, marker = tmp_path / "model", tmp_path / "pwned"
    folder.mkdir()
    for path in model_dir.iterdir():
        if path.is_file() and path.name != trap and (path.suffix != ".safetensors" or trap.startswith("t")):
            (folder / path.name).symlink_to(path)
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass X: ..."
    if trap.endswith("config.json"):
        for name in ("modeling_x.py", "tokenization_x.py", "configuration_x.py"):
            (folder / name).write_text(code)
        kinds = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
        own = {**json.loads((model_dir / trap).read_text()), "model_type": "x", "tokenizer_class": "X"}
        auto = kinds if trap == "config.json" else {"AutoTokenizer": ["tokenization_x.X", None]}
        (folder / trap).write_text(json.dumps({**own, "auto_map": auto}))
    else:
        (folder / trap).write_bytes(pickle.dumps(Bomb(marker)))
    outcome = call(hers.client, "model_load", model=str(folder))
    assert not marker.exists()
    if trap == "training_args.pt":  # it lies beside safetensors, and nobody looks at it
        assert outcome[0] == "complete"
        call(hers.client, "model_unload", model=str(folder))
    else:
        assert outcome[0] == "error"


# Too much


def test_uploads_are_bounded_by_owner(shared) -> None:
    """A guest may send 8 MB a minute here. Others are not held up."""
    flooding, other = visitor(shared), visitor(shared)
    files = [("files", (f"{n}.bin", b"x" * 10**6)) for n in range(4)]
    statuses = [flooding.post("/gradio_api/upload", files=files).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = flooding.post("/gradio_api/upload", files=files)
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert other.post("/gradio_api/upload", files=files[:1]).status_code == 200


def test_an_upload_in_pieces_is_bounded_too(shared) -> None:
    flooding = visitor(shared)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    pieces = lambda: iter([head, *[b"x" * 2**20] * 20, b"\r\n--b--\r\n"])  # noqa: E731
    statuses = {flooding.post("/gradio_api/upload", content=pieces(), headers=headers).status_code for _ in range(4)}
    assert statuses <= {413, 429}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/keys", "/login"])
def test_a_body_is_bounded(bob, path) -> None:
    large = b"x" * (17 * 2**20)
    for content in (large, iter([large[: 2**20]] * 18)):  # with its length, and in pieces without
        assert bob.post(path, content=content, headers={"Content-Type": "application/json"}).status_code in (
            400,
            413,
            429,
        )


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"model": "x", "messages": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        b"\xff\xfe{}",
        b'{"model": NaN}',
        b'{"model": ' + b"9" * 10**6 + b"}",
    ],
    ids=["deep list", "deep object", "deep messages", "no UTF-8", "NaN", "long number"],
)
def test_a_hostile_body(bob, body) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/gradio_api/call/session_import", "/gradio_api/run/predict"):
        answer = bob.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413, 422), (path, answer.status_code)
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "options",
    [
        {"n": 10**9},
        {"max_tokens": 10**18, "stop": ["x"] * 10**5},
        {"temperature": 10**300},
        {"seed": -(2**70)},
        {"logprobs": True, "top_logprobs": 10**6},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1:1/"}},
            }
        },
        {"messages": [{"role": "user", "content": "x "}] * 10**5},
    ],
    ids=["n", "stop", "temperature", "seed", "logprobs", "schema elsewhere", "messages"],
)
def test_what_asks_for_too_much_is_refused(bob, options) -> None:
    answer = bob.post("/v1/chat/completions", json={"model": MODEL, "messages": STORY, **options})
    assert 400 <= answer.status_code < 500, answer.text[:200]


@pytest.mark.parametrize("pattern", ["(((a{1,999}){999}){999}){999}", "(a|a|a)*" * 200, "(x+x+)+y", "a{99999999}"])
def test_a_pattern_that_explodes(bob, pattern) -> None:
    schema = {"name": "x", "schema": {"type": "string", "pattern": pattern}}
    body = {"model": MODEL, "messages": STORY, "max_tokens": 4}
    more = {"response_format": {"type": "json_schema", "json_schema": schema}}
    assert bob.post("/v1/chat/completions", json={**body, **more}).status_code in (200, 400)
    assert bob.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: ",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n--b\r\n\r\n",
    ],
    ids=["nothing", "headers", "body", "chunks"],
)
def test_slow_clients_hold_up_nobody(shared, bob, begin) -> None:
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in bob.cookies.jar)
    begin = begin.replace(b"Host: x", f"Host: {LINK}\r\nCookie: {cookies}".encode())
    slow = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(300)]
    for connection in slow:
        connection.sendall(begin)
    body = {"model": MODEL, "messages": STORY, "max_tokens": 2}
    assert bob.post("/v1/chat/completions", json=body).status_code == 200
    assert made(bob, "session_list") is not None
    for connection in slow:
        connection.close()


def test_headers_without_an_end(shared) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {LINK}\r\n".encode())
        endless = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(20_000))
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(endless)


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: -5",
        "Content-Length: 5, 5",
        "Transfer-Encoding: x",
    ],
)
def test_a_request_is_one_request(shared, lengths) -> None:
    """Smuggling: a proxy and the service must not see different ends."""
    with socket.create_connection(("127.0.0.1", shared.port), timeout=60) as connection:
        connection.sendall(
            f"POST /login HTTP/1.1\r\nHost: {LINK}\r\n{lengths}\r\n\r\n0\r\n\r\nGET /health HTTP/1.1".encode()
        )
        assert b" 200 " not in connection.recv(4096).split(b"\r\n")[0]


# Who one is


@pytest.mark.parametrize("name", ["carol", "ann' OR 1=1 --", "ANN", " ann\x00"])
def test_guessing_a_login(shared, name) -> None:
    """Five tries, whatever address they say they come from."""
    client = httpx.Client(base_url=shared.url, headers={"Host": LINK})
    spoofed = [{"X-Forwarded-For": f"10.0.0.{n}"} for n in range(6)]
    guesses = [{"username": name, "password": f"guess {n}"} for n in range(6)]
    tries = [client.post("/login", data=guesses[n], headers=spoofed[n]) for n in range(6)]
    assert [answer.status_code for answer in tries] == [400] * 5 + [429]
    assert int(tries[-1].headers["retry-after"]) > 0
    assert not client.cookies


@pytest.mark.parametrize("secret", ["x", "none", "Bearer", KEY[:-1], KEY + "x", KEY.upper(), "llmsvc-"])
def test_guessing_a_key(shared, secret) -> None:
    for headers in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}, {"Authorization": f"Basic {KEY}"}):
        assert httpx.get(f"{shared.url}/v1/models", headers={"Host": LINK, **headers}).status_code == 401


@pytest.mark.parametrize("cookie", ["local", "guest:0", "ann", NEVER, "../../x", "null"])
def test_guessing_a_cookie(shared, cookie) -> None:
    cookies = {f"llmsvc-login-{shared.port}": cookie}
    assert httpx.get(f"{shared.url}/v1/models", cookies=cookies, headers={"Host": LINK}).status_code == 401
    cookies = {f"llmsvc-guest-{shared.port}": cookie}
    listed = httpx.Client(base_url=shared.url, cookies=cookies, headers={"Host": LINK})
    assert made(listed, "session_list") == []


@pytest.mark.parametrize(
    "name",
    [
        *("settings_set", "model_load", "model_unload", "model_pin", "model_delete"),
        *("remote_add", "remote_list", "remote_remove"),
    ],
)
def test_what_is_the_admins(bob, guest, name) -> None:
    given = {"settings_set": {"values": {"system": "Obey Bob"}}, "remote_list": {}}
    of_server = {"url": "http://127.0.0.1:1"} if name.startswith("remote_") else {"model": MODEL}
    values = given.get(name, of_server)
    for client in (bob, guest):
        kind, error = call(client, name, **values)
        assert kind == "error"
        assert "admin" in str(error)


@pytest.mark.parametrize(
    "path", ["/metrics", "/docs", "/redoc", "/openapi.json", "/metrics/", "//metrics", "/%6detrics"]
)
def test_what_is_the_admins_by_address(shared, bob, guest, path) -> None:
    for client in (bob, guest):
        status, body = raw(shared, path, client)
        assert status in (307, 401, 403, 404)
        assert b"llmsvc_" not in body


def test_a_login_is_not_replayed_after_it_ended(shared) -> None:
    client = visitor(shared, BOB)
    stolen = {cookie.name: cookie.value for cookie in client.cookies.jar if "login" in cookie.name}
    assert httpx.get(f"{shared.url}/v1/models", cookies=stolen).status_code == 200
    client.get("/logout")
    assert httpx.get(f"{shared.url}/v1/models", cookies=stolen).status_code == 401


def test_a_key_is_not_replayed_after_it_was_revoked(shared, bob) -> None:
    key = bob.post("/v1/keys", json={"name": "stolen"}).json()
    stolen = {"Authorization": f"Bearer {key['key']}"}
    assert httpx.get(f"{shared.url}/v1/models", headers=stolen).status_code == 200
    bob.delete(f"/v1/keys/{key['id']}")
    assert httpx.get(f"{shared.url}/v1/models", headers=stolen).status_code == 401


def test_nothing_of_a_login_that_was_taken_away_opens_anything(tmp_path) -> None:
    both = [flag for login in (ANN, BOB) for flag in ("--auth", ":".join(login))]
    app = App(tmp_path / "data", *both).wait("/health")
    client = visitor(app, BOB)
    key = client.post("/v1/keys", json={"name": "script"}).json()["key"]
    cookies = {cookie.name: cookie.value for cookie in client.cookies.jar}
    app.stop()
    app = App(tmp_path / "data", *both[:2], port=app.port).wait("/health")
    assert httpx.get(f"{app.url}/v1/keys", cookies=cookies).status_code == 401
    assert httpx.get(f"{app.url}/v1/keys", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert httpx.post(f"{app.url}/login", data={"username": BOB[0], "password": key}).status_code == 400
    assert httpx.post(f"{app.url}/login", data={"username": BOB[0], "password": BOB[1]}).status_code == 400
    app.stop()
