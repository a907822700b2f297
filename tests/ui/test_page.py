"""The page in a real browser, with the real model."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clients import until
from gradio_client import Client
from playwright.sync_api import Browser, Error, Page, Route, expect

from llmsvc.models.catalogue import SMOLLM2

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"
PARIS = "The capital of France is Paris."
LONG = "Write a very long story about a lighthouse, with many chapters."
WORDS = re.compile(r"\w+ \w+ \w+")
ENDLESS = 6000


@pytest.fixture
def page(browser: Browser, app) -> Iterator[Page]:
    SHOTS.mkdir(exist_ok=True)
    longest(app, 60)
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, app.url)
    yield page
    page.close()
    assert errors == []


def longest(app, tokens: int) -> None:
    """How long answers may be: short where a test waits for the end, endless where it stops them."""
    settings = {"temperature": 0, "max_tokens": tokens}
    Client(app.url, verbose=False).predict(settings, api_name="/settings_set")


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#composer textarea")).to_be_visible()
    expect(page.locator("#sessions .sessions")).to_be_attached()


def send(page: Page, text: str) -> None:
    page.fill("#composer textarea", text)
    page.keyboard.press("Enter")
    expect(page.locator("#composer textarea")).to_have_value("" if text.strip() else text)  # the server took it


def answered(page: Page) -> None:
    expect(page.locator("#composer .stop-button")).to_have_count(0)
    expect(page.locator("#scroll .usage").last).to_contain_text("tok/s")


def texts(page: Page) -> list[str]:
    """What stands in the messages, without what is said about them."""
    found = page.wait_for_function(  # a message is drawn a moment after its place
        """() => {
          const rows = [...document.querySelectorAll("#history .message-content, #recent .message-content")];
          const shown = rows.map((row) => {
            const copy = row.cloneNode(true);
            copy.querySelectorAll("sub.usage").forEach((part) => part.remove());
            return copy.textContent.trim();
          });
          return shown.every(Boolean) && shown;
        }"""
    )
    return list(found.json_value())


def test_ask_reload_rename_delete_undo(page: Page, app) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    expect(page.locator("#scroll")).to_contain_text(PARIS)
    expect(page.locator("#scroll .usage").last).to_contain_text(re.compile(r"\d+ tokens · [\d.]+ tok/s"))
    current = page.locator("#sessions .current")
    expect(current).to_contain_text(re.compile("capital", re.I))  # the question, until the model made a title
    send(page, "What is it known for?")
    answered(page)
    page.screenshot(path=SHOTS / "desktop.png")

    page.reload()
    expect(page.locator("#scroll")).to_contain_text(PARIS)
    expect(current).to_contain_text(re.compile("capital", re.I))  # the question, until the model made a title

    current.hover()
    current.locator("[data-act=rename]").click()
    page.keyboard.type("Paris")
    page.keyboard.press("Enter")
    expect(current.locator(".name")).to_have_text("Paris")

    current.hover()
    current.locator("[data-act=delete]").click()
    expect(page.locator("#undo")).to_contain_text("Undo: delete “Paris”")
    expect(page.locator("#scroll")).not_to_contain_text(PARIS)
    page.click("#undo")
    expect(page.locator("#scroll")).to_contain_text(PARIS)
    expect(current.locator(".name")).to_have_text("Paris")


def test_a_name_that_is_being_typed_survives_news_in_the_list(page: Page, app) -> None:
    script, row = Client(app.url, verbose=False), {"role": "user", "content": "Hello."}
    made = script.predict(json.dumps({"title": "Before", "messages": [row]}), api_name="/session_import")
    open_page(page, f"{app.url}/#{made['id']}")
    page.reload()
    current = page.locator("#sessions .current")
    expect(current.locator(".name")).to_have_text("Before")
    current.hover()
    current.locator("[data-act=rename]").click()
    page.keyboard.type("New na")
    script.predict(json.dumps({"title": "Newcomer", "messages": [row]}), api_name="/session_import")
    expect(page.locator("#sessions")).to_contain_text("Newcomer")
    page.keyboard.type("me")
    expect(current.get_by_label("Name of this chat")).to_have_value("New name")
    page.keyboard.press("Enter")
    expect(current.locator(".name")).to_have_text("New name")
    page.reload()
    expect(current.locator(".name")).to_have_text("New name")


def test_tokens_arrive_before_the_answer_is_complete(page: Page, app) -> None:
    longest(app, ENDLESS)
    page.click("#new-chat")
    send(page, "Write a story about a lighthouse.")
    live = page.locator("#live .message-content, #live .message").last
    expect(live).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    early = live.inner_text()
    expect(page.locator("#composer .stop-button")).to_be_visible()  # still running
    page.wait_for_function(
        "(n) => document.querySelector('#live').innerText.length > n + 40", arg=len(early), timeout=60_000
    )
    page.click("#composer .stop-button")
    answered(page)
    expect(page.locator("#scroll .usage").last).to_contain_text("stopped")
    before = page.locator("#recent .message, #history .message").last.inner_text().splitlines()[0]
    page.screenshot(path=SHOTS / "stopped.png")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#composer .stop-button")).to_be_visible()
    expect(page.locator("#continue")).not_to_be_visible()
    expect(page.locator("#live")).to_contain_text(before)
    page.click("#composer .stop-button")
    expect(page.locator("#composer .stop-button")).to_have_count(0)
    expect(page.locator("#scroll .message").last).to_contain_text(before)


def test_an_answer_goes_on_through_reload_and_switch(page: Page, app) -> None:
    longest(app, ENDLESS)
    page.click("#new-chat")
    send(page, "Write a story about a bear.")
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.reload()
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.click("#new-chat")
    expect(page.locator("#live")).not_to_be_visible()
    expect(page.locator("#sessions .dot")).to_have_count(1)
    page.locator("#sessions li", has_text="bear").locator(".open").click()
    expect(page.locator("#composer .stop-button")).to_be_visible()
    page.keyboard.press("Escape")
    answered(page)
    expect(page.locator("#scroll .usage").last).to_contain_text("stopped")


def test_a_reload_shows_the_text_before_gradio_has_built_its_page(page: Page, app) -> None:
    longest(app, ENDLESS)
    page.click("#new-chat")
    send(page, "Write a story about a fox.")
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.route("**/assets/*.js", lambda route: route.abort())
    page.reload(wait_until="domcontentloaded")
    expect(page.locator("#early")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.screenshot(path=SHOTS / "early.png")
    page.unroute("**/assets/*.js")
    page.reload()
    expect(page.locator("#live")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    expect(page.locator("#early")).to_have_count(0)
    page.keyboard.press("Escape")
    answered(page)


def test_what_got_lost_on_its_way_to_the_page_is_sent_again(page: Page, app) -> None:
    """The page hears of a chat's newest state, and not of the messages that came before."""
    longest(app, 20)
    for word in ("owl", "yak"):
        page.click("#new-chat")
        send(page, f"Say {word}.")
        answered(page)
    lost = []

    def lose(route) -> None:
        answer = route.fetch()
        if '"open"' in (route.request.post_data or "") and not lost:
            said = answer.json()
            lost.extend(said["data"][1:3])
            said["data"][1:3] = [{"__type__": "update"}] * 2  # nothing new of what stands in the conversation
            return route.fulfill(response=answer, json=said)
        return route.fulfill(response=answer)

    page.route("**/run/predict*", lose)
    owl, yak = (page.locator("#sessions li", has_text=word).locator(".open") for word in ("owl", "yak"))
    for _ in range(2):  # the second time nothing of the chat is new
        owl.click()
        expect(page.locator("#scroll .message.user")).to_contain_text("Say owl.")
        expect(page.locator("#scroll .message.bot")).to_have_count(1)
        assert lost
        yak.click()
        expect(page.locator("#scroll .message.user")).to_contain_text("Say yak.")
        lost.clear()
    page.unroute("**/run/predict*")


def test_two_tabs_show_the_same(page: Page, browser: Browser, app) -> None:
    longest(app, ENDLESS)
    page.click("#new-chat")
    send(page, LONG)
    expect(page.locator("#live")).to_contain_text(WORDS)
    other = browser.new_page()
    open_page(other, page.url)
    expect(other.locator("#live")).to_contain_text(WORDS)
    expect(other.locator("#composer .stop-button")).to_be_visible()
    other.click("#composer .stop-button")
    for tab in (page, other):
        answered(tab)
        expect(tab.locator("#scroll .usage").last).to_contain_text("stopped")
    assert texts(page) == texts(other)
    # What one tab sends is soon seen in the other, which did not ask for it.
    longest(app, 60)
    send(other, "What is the capital of France?")
    answered(other)
    expect(page.locator("#scroll .message.user")).to_have_count(2)
    expect(page.locator("#scroll .message.bot")).to_have_count(2)
    other.close()


def test_a_tab_that_is_out_of_date_changes_nothing(page: Page, app) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    session = page.url.split("#")[1]
    held: list[Route] = []

    def only_what_is_sent(route: Route) -> None:
        route.continue_() if "known for" in (route.request.post_data or "") else held.append(route)

    page.route("**/run/predict", only_what_is_sent)  # the tab hears of nothing
    Client(app.url, verbose=False).predict(session, "Name a colour.", max_tokens=8, api_name="/chat")
    page.fill("#composer textarea", "What is it known for?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("went on elsewhere")
    expect(page.locator("#scroll")).to_contain_text("Name a colour.")
    expect(page.locator("#composer textarea")).to_have_value("What is it known for?")
    page.unroute("**/run/predict")
    for route in held:
        with suppress(Error):  # the browser gave it up
            route.continue_()
    page.locator("#composer textarea").press("Enter")
    expect(page.locator("#composer textarea")).to_have_value("")  # the server took it
    answered(page)
    assert texts(page)[::2] == [
        "What is the capital of France?",
        "Name a colour.",
        "What is it known for?",
    ]


def test_a_request_that_never_comes_back_does_not_make_the_page_deaf(page: Page, app) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    lost: list[Route] = []
    page.route("**/run/predict", lambda route: lost.append(route) if len(lost) < 2 else route.continue_())
    page.wait_for_event("request", lambda request: request.url.endswith("/run/predict"))
    Client(app.url, verbose=False).predict(page.url.split("#")[1], "Name a colour.", max_tokens=8, api_name="/chat")
    expect(page.locator("#scroll")).to_contain_text("Name a colour.")
    assert len(lost) == 2


def test_three_running_chats_stay_apart(page: Page, app) -> None:
    longest(app, ENDLESS)
    animals = ("bear", "whale", "crow")
    for animal in animals:
        page.click("#new-chat")
        expect(page.locator("#history .greeting")).to_be_visible()
        send(page, f"Write a very long story about a {animal}, with many chapters.")
        expect(page.locator("#live")).to_contain_text(WORDS)
    expect(page.locator("#sessions .dot")).to_have_count(3)
    for animal in (*animals, *animals):
        page.locator("#sessions li", has_text=f"about a {animal}").first.locator(".open").click()
        expect(page.locator("#scroll .message.user")).to_contain_text(animal)
        expect(page.locator("#scroll .message.user")).to_have_count(1)
        expect(page.locator("#live")).to_contain_text(WORDS)
    for animal in animals:
        page.locator("#sessions li", has_text=f"about a {animal}").first.locator(".open").click()
        expect(page.locator("#scroll .message.user")).to_contain_text(animal)
        page.click("#composer .stop-button")
        answered(page)
    expect(page.locator("#sessions .dot")).to_have_count(0)


def test_edit_regenerate_and_page_through_branches(page: Page) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    page.locator("#composer textarea").focus()
    page.keyboard.press("ArrowUp")  # edits what was asked last
    expect(page.locator("#composer textarea")).to_have_value("What is the capital of France?")
    expect(page.locator("#editing")).to_contain_text("new branch")
    page.keyboard.press("Escape")
    expect(page.locator("#composer textarea")).to_have_value("")
    page.locator("#scroll .user .do-edit").click()
    expect(page.locator("#editing")).to_contain_text("new branch")
    send(page, "What is the capital of Japan?")
    answered(page)
    pager = page.locator("#scroll .user .pager")
    expect(pager).to_contain_text("2/2")
    expect(page.locator("#scroll .bot")).to_contain_text("Tokyo")
    pager.locator(".do-go").click()
    expect(page.locator("#scroll .bot")).to_contain_text("Paris")
    expect(pager).to_contain_text("1/2")
    page.locator("#scroll .bot .do-again").click()
    expect(page.locator("#scroll .bot .pager")).to_contain_text("2/2")
    answered(page)
    page.reload()  # the branch that was shown last is shown again
    expect(page.locator("#scroll .bot .pager")).to_contain_text("2/2")
    page.locator("#scroll .user .do-go").click()
    expect(page.locator("#scroll .bot")).to_contain_text("Tokyo")


def test_a_second_message_waits_and_can_be_changed_or_withdrawn(page: Page, app) -> None:
    longest(app, ENDLESS)
    page.click("#new-chat")
    send(page, LONG)
    expect(page.locator("#live")).to_contain_text(WORDS)
    send(page, "What is the capital of France?")
    send(page, "Never mind.")
    waiting = page.locator("#waiting li")
    expect(waiting).to_have_count(2)
    expect(waiting.first).to_contain_text("Queued")
    waiting.nth(1).locator("[data-act=withdraw]").click()
    expect(waiting).to_have_count(1)
    waiting.locator("[data-act=edit-queued]").click()
    expect(page.locator("#composer textarea")).to_have_value("What is the capital of France?")
    send(page, "What is the capital of Japan?")
    expect(waiting).to_contain_text("Japan")
    page.click("#composer .stop-button")
    expect(waiting).to_have_count(0)
    answered(page)
    assert texts(page)[2] == "What is the capital of Japan?"
    expect(page.locator("#scroll .bot").last).to_contain_text("Tokyo")


def test_code_tables_and_mathematics_are_drawn_and_markup_is_text(page: Page, app) -> None:
    text = "Use `List<T>` or <b>tags</b>: \\(x^2\\)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint('<i>')\n```"
    thought = f"<think>Let me see.</think>{text}"
    rows = [{"role": "user", "content": text}, {"role": "assistant", "content": thought}]
    made = Client(app.url, verbose=False).predict(json.dumps({"messages": rows}), api_name="/session_import")
    open_page(page, f"{app.url}/#{made['id']}")
    page.reload()
    for role in ("user", "bot"):
        shown = page.locator(f"#scroll .message.{role}").last
        expect(shown.locator("table td")).to_have_count(2)
        expect(shown.locator(".katex").first).to_be_attached()
        expect(shown).to_contain_text("List<T>")
        expect(shown).to_contain_text("<b>tags</b>")
        expect(shown.locator("pre")).to_contain_text("print('<i>')")
        assert shown.locator("pre button, .code_wrap button").count() > 0
    expect(page.locator("#scroll .thought-group")).to_contain_text("Reasoning")


def test_the_page_is_at_the_end_of_a_long_chat_until_one_scrolls_up(page: Page, app) -> None:
    longest(app, ENDLESS)
    rows = [
        {"role": ("user", "assistant")[n % 2], "content": f"Message {n}. " + "word " * (n * 7 % 60)} for n in range(40)
    ]
    made = Client(app.url, verbose=False).predict(json.dumps({"messages": rows}), api_name="/session_import")
    open_page(page, f"{app.url}/#{made['id']}")
    page.reload()
    below = (
        "() => { const s = document.querySelector('#scroll'); return s.scrollHeight - s.scrollTop - s.clientHeight }"
    )
    expect(page.get_by_text("Message 39.")).to_be_in_viewport()
    page.wait_for_function(f"({below})() < 5")
    send(page, LONG)
    live = page.locator("#live .message").last
    expect(live).to_contain_text(WORDS)
    page.reload()
    expect(live).to_contain_text(WORDS)
    expect(live).to_be_in_viewport()
    page.locator("#scroll").hover()
    page.mouse.wheel(0, -600)
    page.wait_for_function(f"({below})() > 400")
    shown = len(live.inner_text())
    page.wait_for_function("(n) => document.querySelector('#live').textContent.length > n + 200", arg=shown)
    assert page.evaluate(below) > 400  # the reader is left alone
    page.click("#composer .stop-button")
    answered(page)


def test_earlier_messages_are_shown_on_demand(page: Page, app) -> None:
    rows = [{"role": ("user", "assistant")[n % 2], "content": f"Message {n}."} for n in range(100)]
    made = Client(app.url, verbose=False).predict(json.dumps({"messages": rows}), api_name="/session_import")
    open_page(page, f"{app.url}/#{made['id']}")
    page.reload()
    for shown in (24, 48, 96):
        expect(page.locator("#scroll .message-row")).to_have_count(shown)
        page.click("#earlier")
    expect(page.locator("#scroll .message-row")).to_have_count(100)
    expect(page.locator("#earlier")).not_to_be_visible()


def test_a_chat_has_settings_of_its_own(page: Page, app) -> None:
    page.click("#new-chat")
    page.locator("#panel .toggle-button").click()
    box = page.locator("#panel").get_by_label("System prompt")
    box.fill("Answer like a pirate.")
    box.blur()
    send(page, "Hello!")
    answered(page)
    session = page.url.split("#")[1]
    client = Client(app.url, verbose=False)
    assert client.predict(session, api_name="/session_settings")["system"] == "Answer like a pirate."
    assert client.predict(session, api_name="/session_get")["messages"][1]["context"]["system"] > 0
    page.click("#new-chat")
    expect(box).to_have_value(SMOLLM2.system)
    page.locator("#sessions li").first.locator(".open").click()
    expect(box).to_have_value("Answer like a pirate.")
    page.click("#reset")
    expect(box).to_have_value(SMOLLM2.system)


def test_export_and_import(page: Page, tmp_path: Path) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    page.locator("#panel .toggle-button").click()
    for name in ("JSON", "Markdown"):
        with page.expect_download() as found:
            page.get_by_role("link", name=name).click()
        file = tmp_path / found.value.suggested_filename
        found.value.save_as(file)
        page.click("#new-chat")
        expect(page.locator("#history .greeting")).to_be_visible()
        page.set_input_files("#panel input[type=file]", file)
        expect(page.locator("#scroll")).to_contain_text(PARIS)
        assert texts(page) == ["What is the capital of France?", PARIS]


def test_the_model_names_a_chat_when_nobody_waits(page: Page, app) -> None:
    longest(app, 300)
    asked = "Write a long story about a dragon"
    page.click("#new-chat")
    send(page, asked)
    expect(page.locator("#live")).to_contain_text(WORDS)
    expect(page.locator("#sessions .current .name")).to_have_text(asked)
    answered(page)
    expect(page.locator("#sessions .current .name")).not_to_have_text(asked, timeout=300_000)


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
    expect(failed).to_have_count(1)
    failed.locator("[data-act=unload]").click()
    expect(failed).to_have_count(0)


@pytest.fixture(scope="module")
def second_model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """A small one with random weights, in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("folders") / "second-model"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": 2, "pad_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**shape, **tokens, max_position_embeddings=1024)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def choose(page: Page, model: str) -> None:
    page.get_by_role("tab", name="Models").click()
    choice = page.get_by_label("Load a model")
    choice.fill(model)
    choice.press("Enter")


def test_a_second_model_is_forecast_loaded_used_pinned_and_ejected(page: Page, second_model: Path) -> None:
    send(page, "What is the capital of France?")
    answered(page)
    choose(page, str(second_model))
    expect(page.locator("#forecast")).to_contain_text("It fits.")
    page.click("#load-model")
    card = page.locator("#model-list .card", has_text="second-model")
    expect(card).to_have_class(re.compile("ready"))
    expect(page.locator("#model-list .meter")).to_contain_text("GB")
    card.get_by_role("button", name="Pin").click()
    expect(card).to_contain_text("pinned")
    page.screenshot(path=SHOTS / "models.png")
    page.set_viewport_size({"width": 390, "height": 800})
    page.reload()  # a phone's page begins with the chats put away
    page.get_by_role("tab", name="Models").click()
    expect(card).to_contain_text("pinned")
    page.screenshot(path=SHOTS / "models-phone.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1360, "height": 860})
    page.reload()
    expect(page.locator("#scroll .message")).not_to_have_count(0)
    page.locator("#chip summary").click()
    page.screenshot(path=SHOTS / "chip.png")
    page.locator("#chip menu button", has_text="second-model").click()
    expect(page.locator("#chip summary")).to_contain_text("second-model")
    send(page, "And of Italy?")
    answered(page)
    assert len(texts(page)) == 4
    page.locator("#chip summary").click()
    page.locator("#chip menu button", has_text="SmolLM2").click()
    expect(page.locator("#chip summary")).to_contain_text("SmolLM2")
    page.get_by_role("tab", name="Models").click()
    card.get_by_role("button", name="Unload").click()
    expect(card).to_have_count(0)


def test_the_forecast_says_why_a_model_cannot_be_loaded(page: Page, tmp_path: Path) -> None:
    choose(page, "nobody/no-such-model")
    page.click("#load-model")
    card = page.locator("#model-list .card", has_text="no-such-model")
    expect(card).to_have_class(re.compile("failed"))
    expect(card.get_by_role("button", name="Use in this chat")).to_have_count(0)
    card.get_by_role("button", name="Dismiss").click()
    expect(card).to_have_count(0)
    for given, said in (
        ("nobody/no-such-model", "not on this machine"),
        (str(tmp_path), "no config.json"),
        ("/nowhere", "There is no /nowhere"),
        ("what?", "is no model id"),
    ):
        choose(page, given)
        expect(page.locator("#forecast")).to_contain_text(said)


def test_settings_are_kept(page: Page, app) -> None:
    page.get_by_role("tab", name="Settings").click()
    box = page.locator("#tab-settings").get_by_label("System prompt")
    box.fill("Answer like a pirate.")
    box.blur()
    expect(page.locator("#tab-settings").get_by_label("number input for Temperature")).to_have_value("0")
    client = Client(app.url, verbose=False)
    until(lambda: client.predict(api_name="/settings_get")["system"] == "Answer like a pirate.")
    page.get_by_role("tab", name="Chat").click()
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#tab-settings").get_by_label("System prompt")).to_have_value("Answer like a pirate.")
    page.locator("#tab-settings").get_by_label("System prompt").fill("")
    page.locator("#tab-settings").get_by_label("System prompt").blur()
    until(lambda: client.predict(api_name="/settings_get")["system"] == "")


def test_a_model_has_defaults_of_its_own(page: Page, app) -> None:
    client, model = Client(app.url, verbose=False), "HuggingFaceTB/SmolLM2-135M-Instruct"
    page.get_by_role("tab", name="Settings").click()
    whose, system = page.locator("#whose input"), page.locator("#tab-settings").get_by_label("System prompt")

    def defaults_of(name: str) -> None:
        whose.click()
        page.get_by_role("option", name=name).click()

    defaults_of(model)
    expect(page.locator("#common")).to_be_visible()
    system.fill("Answer like a pirate.")
    system.blur()
    context, kept = (page.locator("#loading").get_by_label(name) for name in ("Context", "Unload after"))
    for box, value in ((context, "2000"), (kept, "-1")):
        box.fill(value)
        box.blur()
    defaults_of("Every model")
    expect(page.locator("#common")).to_have_count(0)
    expect(system).to_have_value("")
    expect(context).to_have_value("0")
    assert client.predict(api_name="/settings_get")["system"] == ""
    assert client.predict(model, api_name="/settings_get")["system"] == "Answer like a pirate."
    defaults_of(model)
    expect(system).to_have_value("Answer like a pirate.")
    page.screenshot(path=SHOTS / "settings-of-a-model.png")
    expect(context).to_have_value("2000")
    own = client.predict(model, api_name="/settings_get")
    assert (own["context"], own["keep_alive"]) == (2000, -1)
    page.click("#common")
    expect(system).to_have_value(SMOLLM2.system)
    expect(kept).to_have_value("0")
    own, common = client.predict(model, api_name="/settings_get"), client.predict(api_name="/settings_get")
    assert own["from_model"] == {"system": SMOLLM2.system}
    assert own == {**common, "system": SMOLLM2.system, "from_model": own["from_model"]}


def test_phone_width(browser: Browser, app) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    open_page(page, app.url)
    page.locator("#sidebar .toggle-button").click()
    listed = Client(app.url, verbose=False).predict(api_name="/session_list")
    oldest = [row["id"] for row in listed if row["turns"]][-1]
    page.locator(f'#sessions li[data-id="{oldest}"] .open').click()
    expect(page.locator("#sidebar.open")).to_have_count(0)  # it makes room for the chat that was chosen
    expect(page.locator("#sessions")).not_to_be_in_viewport()
    expect(page.locator("#scroll .message").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=SHOTS / "phone.png")
    page.close()


def test_keys(page: Page) -> None:
    page.click("#new-chat")
    send(page, "What is the capital of France?")
    answered(page)
    page.keyboard.press("Control+k")
    page.keyboard.type("zebra")
    expect(page.locator("#sessions .empty")).to_be_visible()  # the search has the focus
    page.keyboard.press("Control+Shift+o")
    expect(page.locator("#scroll")).not_to_contain_text(PARIS)
