"""What the guard in front of everything lets pass, with requests as browsers and attackers send them."""

import httpx
import pytest
from clients import CAPITAL, MODEL

pytestmark = pytest.mark.attack
PATHS = ["/", "/config", "/health", "/v1/models", "/gradio_api/info", "/gradio_api/queue/join", "/v1/chat/completions"]


def send(app, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, app.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:1"])
def test_another_sites_page_may_nothing(app, path, method, origin) -> None:
    refused = send(app, path, method, Origin=origin, Access_Control_Request_Method="POST")
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", PATHS)
def test_another_name_is_not_answered(app, path) -> None:
    """DNS rebinding: an attacker's name that leads here."""
    for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{app.port}", "X-Forwarded-Host": "127.0.0.1"}):
        assert send(app, path, **headers).status_code == 403
    assert send(app, path, Host=f"localhost:{app.port}").status_code != 403


def test_requests_that_browsers_mark_as_foreign(app) -> None:
    image = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
    assert send(app, "/v1/models", **image).status_code == 403
    assert send(app, "/v1/models", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="no-cors").status_code == 403
    assert send(app, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status_code == 200  # a link
    assert send(app, "/v1/models", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors").status_code == 200


def test_its_own_page_and_scripts_pass(app) -> None:
    assert send(app, "/config", Origin=app.url).status_code == 200
    assert send(app, "/config").status_code == 200


def test_browsers_are_told_what_a_page_may_do(app) -> None:
    page, json = send(app, "/"), send(app, "/health")
    for answer in (page, json, send(app, "/config", Origin="https://evil.example"), send(app, "/nothing-here")):
        assert answer.headers["x-content-type-options"] == "nosniff"
    policy = page.headers["content-security-policy"]
    for rule in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'self'", "connect-src 'self'"):
        assert rule in policy
    assert "content-security-policy" not in json.headers


def test_bodies_have_a_bound(app) -> None:
    large = b'{"model": "' + b"x" * 17 * 2**20 + b'"}'
    for content in (large, iter([large[: 2**20]] * 18)):  # with its length, and in pieces without
        headers = {"Content-Type": "application/json"}
        refused = httpx.post(f"{app.url}/v1/chat/completions", content=content, headers=headers)
        assert refused.status_code == 413
        assert refused.json()["error"]["type"] == "request_too_large"
    fine = {"model": MODEL, "messages": CAPITAL, "max_tokens": 1, "user": "x" * 2**20}
    assert httpx.post(f"{app.url}/v1/chat/completions", json=fine, timeout=60).status_code == 200


def test_no_file_of_the_machine_is_served(app) -> None:
    for path in ("/etc/passwd", str(app.data_dir / "index.json"), "../../etc/passwd", "/proc/self/environ"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
            assert send(app, prefix + path).status_code in (400, 403, 404), prefix + path
