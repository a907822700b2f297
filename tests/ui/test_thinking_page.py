"""Reasoning on the page: folded above its answer, with its time; and how it is chosen."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import MODEL, until
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect
from test_page import answered, open_page, send
from thinker import ANSWER

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"
THOUGHT = "The user asks for this."
"""As it is drawn."""


@pytest.fixture
def page(browser: Browser, thinker) -> Iterator[Page]:
    SHOTS.mkdir(exist_ok=True)
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, thinker.url)
    page.click("#new-chat")
    yield page
    page.close()
    assert errors == []


def test_reasoning_is_folded_above_the_answer_with_its_time(page: Page) -> None:
    send(page, "Is it so?")
    answered(page)
    group = page.locator("#recent .thought-group, #history .thought-group").last
    title = group.get_by_role("button").first
    expect(title).to_contain_text(re.compile(r"Thought for \d+ s"))
    expect(page.locator("#scroll")).not_to_contain_text(THOUGHT)
    expect(page.locator("#scroll .message.bot").last).to_contain_text("It is so.")
    box, words = title.bounding_box(), page.get_by_text("It is so.").last.bounding_box()
    assert box is not None
    assert words is not None
    assert box["y"] < words["y"]
    page.screenshot(path=SHOTS / "thought.png")
    title.click()
    expect(group).to_contain_text(THOUGHT)
    page.screenshot(path=SHOTS / "thought-open.png")
    title.press("Enter")
    expect(page.locator("#scroll")).not_to_contain_text(THOUGHT)
    page.reload()
    expect(group).to_contain_text("Thought for")


def test_it_is_told_while_the_model_thinks_and_may_be_opened_then(page: Page) -> None:
    send(page, "Think long about it.")
    live = page.locator("#live .thought-group")
    expect(live).to_contain_text(re.compile(r"Thinking… \d+ s"))
    expect(live).not_to_contain_text("thought1 ")
    live.get_by_role("button").first.press("Enter")
    expect(live).to_contain_text("thought1 thought2")
    shown = len(live.inner_text())
    page.wait_for_function("n => document.querySelector('#live .thought-group').innerText.length > n + 50", arg=shown)
    page.screenshot(path=SHOTS / "thinking.png")
    answered(page)
    expect(page.locator("#scroll")).to_contain_text("It is so.")


def test_an_answer_that_was_stopped_in_its_reasoning_goes_on(page: Page) -> None:
    send(page, "Think long about it.")
    expect(page.locator("#live .thought-group")).to_be_visible()
    page.click("#composer .stop-button")
    expect(page.locator("#scroll .usage").last).to_contain_text("stopped")
    page.click("#continue")
    answered(page)
    expect(page.locator("#scroll .message.bot").last).to_contain_text("It is so.")


def test_a_loop_is_told_of_and_not_to_be_continued(page: Page) -> None:
    send(page, "loop")
    answered(page)
    expect(page.locator("#scroll .usage").last).to_contain_text("stopped: it repeated itself")
    expect(page.locator("#continue")).not_to_be_visible()
    expect(page.locator("#scroll .do-again").last).to_be_visible()


def test_a_chat_chooses_how_it_thinks(page: Page, thinker) -> None:
    client = Client(thinker.url, verbose=False)
    page.locator("#panel .toggle-button").click()
    choice, budget = page.locator("#thinking input"), page.locator("#thinking-budget input")
    expect(choice).to_be_visible()
    choice.click()
    offered = [re.compile(name) for name in ("As the model is made", "Off", "On")]
    expect(page.get_by_role("option")).to_have_text(offered)
    page.get_by_role("option", name="Off").click()
    send(page, "Is it so?")
    answered(page)
    expect(page.locator("#scroll .thought-group")).to_have_count(0)
    expect(choice).to_have_value("Off")
    page.screenshot(path=SHOTS / "thinking-chosen.png")
    choice.click()
    page.get_by_role("option", name="On").click()
    budget.fill("12")
    budget.blur()
    session = page.url.partition("#")[2]
    settings = lambda: client.predict(session, api_name="/session_settings")  # noqa: E731
    until(lambda: (settings()["thinking"], settings()["thinking_budget"]) == ("on", 12))
    send(page, "Think long about it.")
    answered(page)
    last = client.predict(session, api_name="/session_get")["messages"][-1]
    assert last["content"] == ANSWER
    assert len(last["reasoning"].split()) < 12
    page.click("#reset")
    expect(choice).to_have_value("As the model is made")
    expect(budget).to_have_value("0")


def test_what_the_model_brings_is_shown_as_such(page: Page) -> None:
    page.locator("#panel .toggle-button").click()
    panel = page.locator("#panel")
    expect(panel.get_by_label("number input for Temperature")).to_have_value("0.6")
    expect(panel.get_by_text("From the model")).to_have_count(2)
    panel.get_by_label("number input for Temperature").fill("0.7")
    panel.get_by_label("number input for Temperature").blur()
    expect(panel.get_by_text("From the model")).to_have_count(1)
    expect(panel.get_by_text("0 always takes the likeliest token")).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    page.locator("#whose input").click()
    page.get_by_role("option", name=MODEL).click()
    expect(page.locator("#tab-settings").get_by_text("From the model")).to_have_count(2)
    page.screenshot(path=SHOTS / "from-the-model.png")
