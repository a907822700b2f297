"""The Anthropic API through its official client, against the running app with the real model."""

import anthropic
import pytest
from anthropic import Anthropic
from clients import CAPITAL, MODEL, OSLO, PARIS, STORY, WEATHER, busy, until
from gradio_client import Client
from pydantic import BaseModel

TOOL = {"name": "get_weather", "description": "The weather.", "input_schema": WEATHER}
ASK = {"model": MODEL, "max_tokens": 60, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def api(app) -> Anthropic:
    return Anthropic(base_url=app.url, api_key="none", max_retries=0, timeout=120)


def test_an_answer(api) -> None:
    answer = api.messages.create(messages=CAPITAL, **ASK)
    assert [block.text for block in answer.content] == [PARIS]
    assert (answer.stop_reason, answer.stop_sequence, answer.model) == ("end_turn", None, MODEL)
    assert answer.usage.output_tokens == 8
    counted = api.messages.count_tokens(messages=CAPITAL, model=MODEL).input_tokens
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == counted


def test_a_stream_is_the_same_answer(api) -> None:
    with api.messages.stream(messages=CAPITAL, **ASK) as stream:
        assert "".join(stream.text_stream) == PARIS
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason, final.usage.output_tokens) == (PARIS, "end_turn", 8)


def test_system_blocks_and_an_answer_that_was_begun(api) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": CAPITAL[0]["content"]}]}]
    short = api.messages.create(system="Answer in one word.", messages=blocks, **ASK)
    assert "Paris" in short.content[0].text
    begun = [*CAPITAL, {"role": "assistant", "content": "The capital of"}]
    assert api.messages.create(messages=begun, **ASK).content[0].text == " France is Paris."


def test_how_it_ended(api) -> None:
    stopped = api.messages.create(messages=CAPITAL, stop_sequences=["Rome", " is"], **ASK)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " is")
    assert stopped.content[0].text == "The capital of France"
    cut = api.messages.create(messages=STORY, **{**ASK, "max_tokens": 3})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_by_a_schema(api) -> None:
    asked = [{"role": "user", "content": "Give me a person: Anna, who is 31."}]
    form = {"format": {"type": "json_schema", "schema": Person.model_json_schema()}}
    answer = api.messages.create(messages=asked, output_config=form, **ASK)
    assert Person.model_validate_json(answer.content[0].text)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(api, streamed) -> None:
    choice = {"type": "tool", "name": "get_weather"}
    asked = {"tools": [TOOL], "messages": [OSLO], "tool_choice": choice, **ASK}
    if streamed:
        with api.messages.stream(**asked) as stream:
            answer = stream.get_final_message()
    else:
        answer = api.messages.create(**asked)
    (call,) = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert call.input["unit"] in ("celsius", "fahrenheit")
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "7 degrees and rain."}],
    }
    told = [OSLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    said = api.messages.create(messages=told, **ASK).content[0].text
    assert "7" in said or "rain" in said


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "claude"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, anthropic.BadRequestError, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, anthropic.BadRequestError, "text only"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, anthropic.BadRequestError, "8,192"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "tool"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_anthropics(api, change, error, words, stream) -> None:
    with pytest.raises(error) as refused:
        api.messages.create(**{**ASK, "messages": CAPITAL, "stream": stream, **change})
    assert refused.value.body["type"] == "error"
    assert words in refused.value.body["error"]["message"]


def test_who_goes_away_takes_the_answer_along(app, api) -> None:
    with api.messages.stream(messages=STORY, model=MODEL, max_tokens=4000) as stream:
        next(stream.text_stream)
        assert busy(app) == 1
    until(lambda: busy(app) == 0)


def test_an_answer_within_a_chat(app, api) -> None:
    page = Client(app.url, verbose=False)
    session = page.predict(title="By script", api_name="/session_create")["id"]
    api.messages.create(messages=CAPITAL, extra_headers={"X-LLMSVC-Session": session}, **ASK)
    kept = page.predict(session, api_name="/session_get")["messages"]
    assert [message["content"] for message in kept] == [CAPITAL[0]["content"], PARIS]
