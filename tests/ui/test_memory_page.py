"""A chat that fills its window, and facts for all chats: over the real doors, and in a real browser."""

import re
from pathlib import Path

import pytest
import samples
from clients import until
from gradio_client import Client
from playwright.sync_api import Browser, expect

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"


@pytest.fixture(scope="module")
def full_chat(app) -> tuple[str, dict]:
    """A chat that was cut while nobody waited, and the status of the answer after that."""
    client = Client(app.url, verbose=False)
    session = client.predict(title="A full chat", api_name="/session_create")["id"]
    say = lambda text, tokens=4: client.predict(session, text, temperature=0, max_tokens=tokens, api_name="/chat")[1]  # noqa: E731
    say("My sister's boat is called Halcyon, and it lies in Bergen.")
    window = say("Wait for me.")["context"]["window"]
    status: dict = {"context": {"prompt": 0}}
    while status["context"]["prompt"] < 0.64 * window:  # 0.85 of the three quarters that are not kept for answers
        status = say(samples.sentences(40, status["context"]["prompt"]))
    until(lambda: client.predict(session, api_name="/session_get")["summaries"])
    return session, say("What was the boat of my sister called?", 24)


def test_a_full_chat_is_told_in_short_and_read_while_nobody_waits(full_chat) -> None:
    _, status = full_chat
    ledger = status["context"]
    assert ledger["summary"] > 0
    assert (ledger["summarised_from"], ledger["turns_left_out"]) == (1, 0)
    assert [piece["depth"] for piece in ledger["recalled_from"]] == [1]
    before = ledger["prompt"] - ledger["message"] - ledger["recalled"] - ledger["excerpts"]
    assert status["usage"]["cached_tokens"] >= 0.95 * before


def test_the_page_shows_the_summary_and_the_memory(browser: Browser, app, full_chat) -> None:
    SHOTS.mkdir(exist_ok=True)
    session, status = full_chat
    client = Client(app.url, verbose=False)
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    page.goto(f"{app.url}/#{session}")
    ledger = page.locator("#scroll .ledger").last
    ledger.locator("summary").click()
    expect(ledger).to_contain_text("found again: turn 1")
    page.screenshot(path=SHOTS / "memory-ledger.png")
    ledger.get_by_role("button", name=f"turns 1–{status['context']['turns_summarised']}").click()
    (summary,) = client.predict(session, api_name="/session_get")["summaries"]
    expect(page.locator("#file-text pre")).to_have_text(summary["text"], use_inner_text=True)
    page.screenshot(path=SHOTS / "memory-summary.png")

    page.locator("#panel .toggle-button").click()
    page.get_by_role("button", name="Memory").click()
    memory = page.locator("#memory")
    memory.get_by_label("Use in all my chats").check()
    memory.get_by_placeholder("Add a fact").fill("I like <b>tea</b>.")
    page.keyboard.press("Enter")
    fact = memory.get_by_label("A fact", exact=True)
    expect(fact).to_have_value("I like <b>tea</b>.")
    fact.fill("I like coffee.")
    page.keyboard.press("Enter")
    page.screenshot(path=SHOTS / "memory-facts.png")
    memory.get_by_role("button", name=re.compile("Delete: I like coffee")).click()
    expect(fact).to_have_count(0)
    memory.get_by_role("button", name=re.compile("Undo")).click()
    expect(fact).to_have_value("I like coffee.")
    known = client.predict(api_name="/memory_list")
    client.predict(False, api_name="/memory_switch")
    for row in known["facts"]:
        client.predict(row["id"], api_name="/memory_delete")
    assert (known["on"], [row["text"] for row in known["facts"]]) == (True, ["I like coffee."])
    page.close()
