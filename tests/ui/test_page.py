"""The page in a real browser, with the real model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect, sync_playwright

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, app) -> Iterator[Page]:
    client = Client(app.url, verbose=False)
    client.predict({"temperature": 0, "max_tokens": 400}, api_name="/settings_set")
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, app.url)
    yield page
    page.close()
    assert errors == []


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#composer textarea")).to_be_visible()
    expect(page.locator("#sessions .sessions")).to_be_attached()


def send(page: Page, text: str) -> None:
    page.fill("#composer textarea", text)
    page.keyboard.press("Enter")


def answered(page: Page) -> None:
    expect(page.locator("#composer .stop-button")).to_have_count(0, timeout=60_000)
    expect(page.locator("#history .usage").last).to_contain_text("tok/s")


def test_ask_reload_rename_delete_undo(page: Page, app) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    expect(page.locator("#history")).to_contain_text(PARIS)
    expect(page.locator("#history .usage")).to_contain_text(re.compile(r"\d+ tokens · [\d.]+ tok/s"))
    current = page.locator("#sessions .current")
    expect(current).to_contain_text("What is the capital")
    send(page, "What is it known for?")
    answered(page)
    page.screenshot(path=SHOTS / "desktop.png")

    page.reload()
    expect(page.locator("#history")).to_contain_text(PARIS)
    expect(current).to_contain_text("What is the capital")

    current.hover()
    current.locator("[data-act=rename]").click()
    page.keyboard.type("Paris")
    page.keyboard.press("Enter")
    expect(current.locator(".name")).to_have_text("Paris")

    current.hover()
    current.locator("[data-act=delete]").click()
    expect(page.locator("#undo")).to_contain_text("Undo: delete “Paris”")
    expect(page.locator("#history")).not_to_contain_text(PARIS)
    page.click("#undo")
    expect(page.locator("#history")).to_contain_text(PARIS)
    expect(current.locator(".name")).to_have_text("Paris")


def test_tokens_arrive_before_the_answer_is_complete(page: Page) -> None:
    page.click("#new-chat")
    send(page, "Write a story about a lighthouse.")
    live = page.locator("#live .message-content, #live .message").last
    expect(live).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    early = live.inner_text()
    expect(page.locator("#composer .stop-button")).to_be_visible()  # still running
    page.wait_for_function(
        "(n) => document.querySelector('#live').innerText.length > n + 40", arg=len(early), timeout=60_000
    )
    page.click("#composer .stop-button")
    answered(page)
    expect(page.locator("#history .usage").last).to_contain_text("stopped")
    before = page.locator("#history .message").last.inner_text().splitlines()[0]
    page.screenshot(path=SHOTS / "stopped.png")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#composer .stop-button")).to_be_visible()
    expect(page.locator("#continue")).not_to_be_visible()
    expect(page.locator("#live")).to_contain_text(before)
    page.click("#composer .stop-button")
    expect(page.locator("#composer .stop-button")).to_have_count(0, timeout=60_000)
    expect(page.locator("#history .message").last).to_contain_text(before)


def test_an_answer_goes_on_through_reload_and_switch(page: Page) -> None:
    page.click("#new-chat")
    send(page, "Write a story about a bear.")
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    page.reload()
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    page.click("#new-chat")
    expect(page.locator("#live")).not_to_be_visible()
    expect(page.locator("#sessions .dot")).to_have_count(1)
    page.locator("#sessions li", has_text="bear").locator(".open").click()
    expect(page.locator("#composer .stop-button")).to_be_visible()
    page.keyboard.press("Escape")
    answered(page)
    expect(page.locator("#history .usage").last).to_contain_text("stopped")


def test_an_empty_message_sends_nothing(page: Page) -> None:
    page.click("#new-chat")
    send(page, "   ")
    expect(page.locator("#history .greeting")).to_be_visible()
    expect(page.locator("#composer .stop-button")).to_have_count(0)


def test_search_narrows_the_list(page: Page, app) -> None:
    Client(app.url, verbose=False).predict(title="Platypus facts", api_name="/session_create")
    page.fill("#search input, #search textarea", "platypus")
    expect(page.locator("#sessions li")).to_have_count(1)
    expect(page.locator("#sessions")).to_contain_text("Platypus facts")


def test_names_are_text_and_never_markup(page: Page, app) -> None:
    Client(app.url, verbose=False).predict(title="<img src=x onerror=window.pwned=1>", api_name="/session_create")
    page.reload()
    expect(page.locator("#sessions")).to_contain_text("<img src=x")
    assert page.evaluate("window.pwned") is None


def test_models_tab_shows_loads_and_says_what_failed(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()
    expect(page.locator("#model-list .card.ready")).to_contain_text("SmolLM2-135M-Instruct")
    expect(page.locator("#model-list .card.ready")).to_contain_text("8,192 tokens of context")
    choice = page.get_by_label("Load a model")
    choice.fill("nobody/no-such-model")
    choice.press("Enter")
    page.click("#load-model")
    failed = page.locator("#model-list .card.failed", has_text="nobody/no-such-model")
    expect(failed).to_have_count(1, timeout=60_000)
    failed.locator("[data-act=unload]").click()
    expect(failed).to_have_count(0)


def test_settings_are_kept(page: Page) -> None:
    page.get_by_role("tab", name="Settings").click()
    box = page.get_by_label("System prompt")
    box.fill("Answer like a pirate.")
    box.blur()
    expect(page.get_by_label("number input for Temperature")).to_have_value("0")
    page.wait_for_timeout(0)
    page.get_by_role("tab", name="Chat").click()
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_have_value("Answer like a pirate.")
    page.get_by_label("System prompt").fill("")
    page.get_by_label("System prompt").blur()


def test_phone_width(browser: Browser, app) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    open_page(page, app.url)
    page.locator(".sidebar .toggle-button").click()
    page.locator("#sessions li").last.locator(".open").click()
    expect(page.locator(".sidebar.open")).to_have_count(0)  # it makes room for the chat that was chosen
    expect(page.locator("#history .message").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=SHOTS / "phone.png")
    page.close()
