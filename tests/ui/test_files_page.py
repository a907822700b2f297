"""Files on the page, in a real browser: drop, watch, read, remove."""

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import samples
from clients import until
from gradio_client import Client
from playwright.sync_api import Browser, Error, Locator, Page, expect

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"
DROP = """async (files) => {
  const data = new DataTransfer();
  for (const [name, content] of files) {
    data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  }
  const to = document.querySelector("#scroll");
  for (const type of ["dragover", "drop"]) {
    to.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""
PASTE = """([name, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([content], name));
  document.querySelector("#composer textarea")
    .dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture
def page(browser: Browser, app) -> Iterator[Page]:
    SHOTS.mkdir(exist_ok=True)
    Client(app.url, verbose=False).predict({"temperature": 0, "max_tokens": 40}, api_name="/settings_set")
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(app.url)
    expect(page.locator("#sessions .sessions")).to_be_attached()
    page.click("#new-chat")
    yield page
    page.close()
    assert errors == []


def drop(page: Page, **files: bytes) -> None:
    page.evaluate(DROP, [[name, base64.b64encode(content).decode()] for name, content in files.items()])


def chip(page: Page, name: str):
    return page.locator("#chips li", has_text=name)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def remove(card: Locator) -> None:
    """Click until it is gone: the first click is forgotten after four seconds."""
    button = card.get_by_role("button", name="Remove")
    button.click()
    expect(button).to_have_text("Remove?")

    def gone() -> bool:
        with suppress(Error):  # it went meanwhile
            button.click(timeout=5000)
        return not card.count()

    until(gone, pause=1)


def test_drop_several_watch_read_and_remove(page: Page, app) -> None:
    long = samples.pdf(samples.sentences(30, n) for n in range(150))
    drop(
        page,
        **{
            "long.pdf": long,
            "notes.md": b"# Plan\n\nThe key is under the mat.",
            "locked.pdf": samples.locked_pdf("sesame"),
        },
    )
    expect(page.locator("#chips li")).to_have_count(3)
    expect(chip(page, "long.pdf")).to_contain_text(re.compile(r"reading \d+ %"))
    page.screenshot(path=SHOTS / "files-reading.png")
    expect(chip(page, "notes.md")).to_contain_text("ready")
    expect(chip(page, "locked.pdf")).to_contain_text("not read")
    expect(chip(page, "long.pdf")).to_contain_text("150 pages", timeout=600_000)  # those who ask go ahead of it

    chip(page, "long.pdf").locator("[data-act=file-open]").click()
    shown = page.locator("#file-text")
    expect(shown).to_contain_text(samples.sentences(30)[:60])
    page.screenshot(path=SHOTS / "files-tab.png")
    shown.get_by_role("button", name="Later").click()
    expect(shown).not_to_contain_text("Page 1\n")
    shown.get_by_role("button", name="Close").click()
    expect(shown).to_have_text("")

    card = page.locator("#file-list .card", has_text="locked.pdf")
    expect(card).to_contain_text("locked with a password")
    card.get_by_placeholder("Password").fill("sesame")
    page.keyboard.press("Enter")
    expect(card.locator(".state")).to_have_text("ready")

    remove(page.locator("#file-list .card", has_text="notes.md"))
    expect(page.locator("#file-list .card")).to_have_count(2)
    tab(page, "Chat")
    expect(page.locator("#chips li")).to_have_count(2)

    page.reload()  # the chat keeps its files, another one has none
    expect(page.locator("#chips li")).to_have_count(2)
    page.click("#new-chat")
    expect(page.locator("#chips li")).to_have_count(0)


def test_attach_by_keyboard_and_paste(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#attach").focus()
        page.keyboard.press("Enter")
    chooser.value.set_files(
        {"name": "<b>odd</b> & name.txt", "mimeType": "text/plain", "buffer": "Déjà vu".encode("latin-1")}
    )
    expect(page.locator("#chips li.ready")).to_have_count(1)
    page.evaluate(PASTE, ["pasted.py", "def answer():\n    return 42\n"])
    expect(page.locator("#chips li.ready")).to_have_count(2)
    tab(page, "Files")
    card = page.locator("#file-list .card").first
    card.locator("select").select_option("cp1251")
    expect(card.locator("select")).to_have_value("cp1251")

    def shown() -> bool:  # it may still be read
        card.get_by_role("button", name="Show").click()
        with suppress(AssertionError):
            expect(page.locator("#file-text")).to_contain_text("Dйjа vu", timeout=1000)
            return True
        return False

    until(shown)
    # From the chip, by keyboard: a button that is drawn anew keeps the focus.
    tab(page, "Chat")
    chip(page, "pasted.py").get_by_role("button", name="Remove").focus()
    page.keyboard.press("Enter")
    expect(chip(page, "pasted.py")).to_contain_text("Remove?")
    page.keyboard.press("Enter")
    expect(page.locator("#chips li")).to_have_count(1)


def test_what_is_refused_is_said(page: Page) -> None:
    drop(page, **{"empty.txt": b"", "song.txt": b"ID3 sound"})
    expect(chip(page, "song.txt")).to_contain_text("not read")
    expect(chip(page, "song.txt").locator("[data-act=file-open]")).to_have_attribute("title", re.compile("a sound"))


def test_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    page.reload()
    expect(page.locator("#composer textarea")).to_be_visible()
    drop(page, **{f"a long name of a file, number {n}.txt": b"words" for n in range(4)})
    expect(page.locator("#chips li.ready")).to_have_count(4)
    page.screenshot(path=SHOTS / "files-phone.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    chip(page, "number 2").locator("[data-act=file-open]").click()
    expect(page.locator("#file-text")).to_contain_text("words")
    page.screenshot(path=SHOTS / "files-phone-tab.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def ask(page: Page, text: str) -> None:
    page.fill("#composer textarea", text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int) -> None:
    expect(page.locator("#scroll .ledger")).to_have_count(count, timeout=600_000)
    expect(page.locator("#composer .stop-button")).to_have_count(0)


def test_ask_while_files_are_read_follow_a_source_remove_and_ask_again(page: Page, app) -> None:
    facts = [f"{samples.sentences(25, n)} The gauge of engine {n} shows {7 * n} bar." for n in range(80)]
    drop(page, **{"gauges.pdf": samples.pdf(facts), "key.md": b"The key is under the mat.", "c.txt": b"Tea at five."})
    expect(page.locator("#chips li")).to_have_count(3)
    ask(page, "What does the gauge of engine 61 show?")
    expect(page.locator("#live")).to_contain_text("Reading gauges.pdf")
    page.screenshot(path=SHOTS / "files-wait.png")
    answered(page, 1)
    ledger = page.locator("#scroll .ledger")
    expect(ledger).to_contain_text("tokens read · key.md, c.txt, gauges.pdf")
    ledger.locator("summary").click()
    page.screenshot(path=SHOTS / "files-ledger.png")
    ledger.get_by_role("button", name="p.62", exact=True).click()
    shown = page.locator("#file-text")
    expect(shown).to_contain_text("engine 61 shows 427 bar".replace(" ", " "))
    page.screenshot(path=SHOTS / "files-source.png")

    remove(page.locator("#file-list .card", has_text="gauges.pdf"))
    expect(page.locator("#file-list .card")).to_have_count(2)
    tab(page, "Chat")
    ask(page, "And engine 12?")
    answered(page, 2)
    expect(page.locator("#scroll .ledger").last).to_contain_text("tokens read · key.md, c.txt")
    expect(page.locator("#scroll .ledger").last).not_to_contain_text("gauges.pdf")
