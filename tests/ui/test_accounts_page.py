"""What the page offers to the admin, to others and to guests; keys made and revoked on it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from clients import MODEL
from conftest import App, with_models_of
from playwright.sync_api import Browser, Page, expect

ADMIN, USER = ("ann", "one two"), ("bob", "three")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    own = with_models_of(data_dir, tmp_path_factory.mktemp("accounts"))
    running = App(
        own, "--auth", ":".join(ADMIN), "--auth", ":".join(USER), "--guests", "--guest-rate-limit", "1"
    ).wait()
    yield running
    running.stop()


def opened(app: App, browser: Browser, login: tuple[str, str] | None = None) -> Page:
    page = browser.new_context().new_page()
    if login:
        page.goto(f"{app.url}/login")
        page.get_by_label("Name").fill(login[0])
        page.get_by_label("Password").fill(login[1])
        page.get_by_role("button", name="Log in").click()
    else:
        page.goto(app.url)
    expect(page.locator("#composer textarea")).to_be_visible()
    return page


def test_the_admin_has_every_button(shared, browser) -> None:
    page = opened(shared, browser, ADMIN)
    page.get_by_role("tab", name="Models").click()
    card = page.locator("#model-list .card", has_text=MODEL)
    expect(card.get_by_role("button", name="Unload")).to_be_visible()
    expect(card.get_by_role("button", name="Pin")).to_be_visible()
    expect(page.locator("#load-model")).to_be_visible()
    expect(page.get_by_text("Only the admin")).to_have_count(0)
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#tab-settings").get_by_label("Seed")).to_be_enabled()
    page.context.close()


@pytest.mark.parametrize("login", [USER, None])
def test_others_have_those_that_they_may_use(shared, browser, login) -> None:
    page = opened(shared, browser, login)
    page.get_by_role("tab", name="Models").click()
    expect(page.get_by_text("Only the admin of this service loads")).to_be_visible()
    card = page.locator("#model-list .card", has_text=MODEL)
    expect(card).to_be_visible()
    expect(card.get_by_role("button", name="Unload")).to_have_count(0)
    expect(card.get_by_role("button", name="Pin")).to_have_count(0)
    expect(page.locator("#load-model")).to_be_hidden()
    expect(page.locator("#delete-model")).to_be_hidden()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_text("Only the admin of this service can change")).to_be_visible()
    expect(page.locator("#tab-settings").get_by_label("Seed")).to_be_disabled()
    expect(page.locator("#keys")).to_be_visible(visible=login is not None)
    page.context.close()


def test_keys_are_made_and_revoked(shared, browser) -> None:
    page = opened(shared, browser, USER)
    page.get_by_role("tab", name="Settings").click()
    page.locator("#keys").get_by_role("button", name="API keys").click()
    expect(page.locator("#key-list")).to_contain_text("You have no keys")
    page.get_by_label("Name of a new key").fill("<b>nightly</b>")
    page.locator("#make-key").click()
    shown = page.locator("#made-key textarea, #made-key input")
    expect(shown).to_have_value(re.compile("llmsvc-.{43}"))
    key = shown.input_value()
    asked = lambda: httpx.get(f"{shared.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code  # noqa: E731
    assert asked() == 200
    expect(page.locator("#key-list")).to_contain_text("<b>nightly</b>")
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    page.locator("#keys").get_by_role("button", name="API keys").click()
    expect(page.locator("#key-list")).to_contain_text("<b>nightly</b>")
    assert key not in page.content()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#key-list").get_by_role("button", name="Revoke").click()
    expect(page.locator("#key-list")).to_contain_text("You have no keys")
    assert asked() == 401
    page.context.close()


def test_a_refused_first_message_stays_in_the_composer_and_makes_no_second_chat(shared, browser) -> None:
    page = opened(shared, browser)
    composer = page.locator("#composer textarea")
    composer.fill("Say hi.")
    composer.press("Enter")
    expect(composer).to_have_value("")
    page.locator("#new-chat").click()
    for _ in range(2):
        composer.fill("Too soon.")
        composer.press("Enter")
        expect(page.locator("#editing")).to_contain_text("more than 1 answers a minute. Wait")
        expect(composer).to_have_value("Too soon.")
        expect(page.locator("#sessions li")).to_have_count(2)
    page.context.close()
