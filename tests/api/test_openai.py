"""The OpenAI API through its official client, against the running app with the real model."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from clients import CAPITAL, MODEL, OSLO, PARIS, STORY, WEATHER, busy, until
from gradio_client import Client
from openai import OpenAI
from pydantic import BaseModel

IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}}


@pytest.fixture(scope="module")
def api(app) -> OpenAI:
    return OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def ask(api) -> Callable[..., Any]:
    def ask(messages: list[Any], **options: Any) -> Any:
        return api.chat.completions.create(model=MODEL, messages=messages, **{"temperature": 0, **options})

    return ask


def test_models_are_those_that_can_be_asked(api) -> None:
    ids = [model.id for model in api.models.list()]
    assert MODEL in ids
    assert api.models.retrieve(MODEL).model_extra["context_length"] == 8192
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt-4o")


def test_an_answer(ask) -> None:
    answer = ask(CAPITAL)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, answer.model) == (PARIS, "stop", MODEL)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 8  # the mark of the end is one


def test_nothing_of_it_is_a_chat(app, ask) -> None:
    sessions = Client(app.url, verbose=False).predict(api_name="/session_list")
    ask(CAPITAL)
    assert Client(app.url, verbose=False).predict(api_name="/session_list") == sessions


def test_a_stream_is_the_same_answer(ask) -> None:
    chunks = list(ask(CAPITAL, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == PARIS
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 8)
    assert len(list(ask(STORY, stream=True, max_tokens=60))) > 4


def test_all_messages_count(ask) -> None:
    messages = [{"role": "system", "content": "Answer in one word."}, *CAPITAL]
    messages += [{"role": "assistant", "content": "Paris"}, {"role": "user", "content": "And the capital of Japan?"}]
    assert "Tokyo" in ask(messages).choices[0].message.content
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is the capital of"}, {"type": "text", "text": "France?"}],
        }
    ]
    assert "Paris" in ask(parts).choices[0].message.content


def test_an_answer_that_was_begun_goes_on(ask) -> None:
    assert (
        ask([*CAPITAL, {"role": "assistant", "content": "The capital of"}]).choices[0].message.content
        == " France is Paris."
    )


def test_sampling(ask) -> None:
    ask(STORY, max_tokens=1)  # what was read before is not read again, and rounds differently
    text = lambda **options: ask(STORY, max_tokens=12, **options).choices[0].message.content  # noqa: E731
    assert text(temperature=1.3, seed=1) == text(temperature=1.3, seed=1) != text(temperature=1.3, seed=2)
    assert ask(STORY, max_completion_tokens=3).usage.completion_tokens == 3
    assert ask(STORY, max_tokens=3).choices[0].finish_reason == "length"
    assert ask(CAPITAL, stop=["of France", "\n"]).choices[0].message.content == "The capital "


def test_several_answers(ask) -> None:
    answer = ask(STORY, n=3, temperature=1.3, seed=5, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 24
    chunks = list(ask(CAPITAL, n=3, stream=True))
    for number in range(3):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert "".join(choice.delta.content or "" for choice in own) == PARIS
        assert own[-1].finish_reason == "stop"


def test_logprobs(ask) -> None:
    found = ask(CAPITAL, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(one.token for one in found) == PARIS
    for one in found:
        assert one.top_logprobs[0].logprob == one.logprob <= 0  # greedy: the likeliest was taken
        assert len(one.top_logprobs) == 3
    streamed = [chunk.choices[0] for chunk in ask(CAPITAL, logprobs=True, stream=True)]
    assert "".join(one.token for c in streamed if c.logprobs for one in c.logprobs.content) == PARIS


def test_raw_completions(api) -> None:
    def make(prompt: Any, **more: Any) -> Any:
        return api.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=5, **more)

    first = make("The capital of France is").choices[0].text
    assert "Paris" in first
    both = make(["The capital of France is", "The capital of Japan is"])
    assert [first in both.choices[0].text, "Tokyo" in both.choices[1].text] == [True, True]
    assert "".join(chunk.choices[0].text for chunk in make("The capital of France is", stream=True)) == first
    logprobs = make("The capital of France is", logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    assert first.startswith(logprobs.tokens[0])


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_by_a_schema(api, ask) -> None:
    asked = [{"role": "user", "content": "Give me a person: Anna, who is 31."}]
    found = api.chat.completions.parse(
        model=MODEL, messages=asked, response_format=Person, temperature=0, max_tokens=60
    )
    assert isinstance(found.choices[0].message.parsed, Person)
    free = ask(asked, response_format={"type": "json_object"}, max_tokens=30).choices[0]
    if free.finish_reason == "stop":
        assert isinstance(json.loads(free.message.content), dict)
    assert free.message.content.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_must_be_called(ask, choice) -> None:
    answer = ask([OSLO], tools=[TOOL], tool_choice=choice, max_tokens=80).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    assert len(answer.message.tool_calls) == 1 or choice == "required"  # which may be several
    for call in answer.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather"
        assert arguments["city"]
        assert arguments["unit"] in ("celsius", "fahrenheit")


def test_a_call_and_its_result(ask) -> None:
    asked = [OSLO]
    named = {"type": "function", "function": {"name": "get_weather"}}
    chunks = list(ask(asked, tools=[TOOL], tool_choice=named, max_tokens=80, stream=True))
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    made = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": call.function.arguments},
    }
    asked += [{"role": "assistant", "content": None, "tool_calls": [made]}]
    asked += [{"role": "tool", "tool_call_id": call.id, "content": "It is 7 degrees and raining."}]
    said = ask(asked, tools=[TOOL], tool_choice="none", max_tokens=60).choices[0]
    assert "7" in said.message.content or "rain" in said.message.content


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-4o"}, 404, "gpt-4o"),
        ({"model": "nobody/nothing-at-all"}, 404, "v1/models"),
        ({"model": "/etc"}, 404, "/etc"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "Hello"}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hello"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "8,192"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, 400, "text only"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": 9}, 400, "between"),
        ({"n": 99}, 400, "answers"),
        ({"frequency_penalty": 1}, 400, "not supported"),
        ({"tool_choice": "required"}, 400, "tool"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, 400, "schema"),
        ({"top_logprobs": 50, "logprobs": True}, 400, "top_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_openais(api, change, status, words, stream) -> None:
    given = {"model": MODEL, "messages": CAPITAL, "stream": stream, **change}
    with pytest.raises(openai.APIStatusError) as refused:
        api.chat.completions.create(**given)
    error = refused.value
    assert error.status_code == status
    assert words in error.body["message"]
    assert error.body["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert "Traceback" not in str(error.body)


def test_programs_can_tell_errors(api) -> None:
    too_long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model=MODEL, messages=too_long)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-4o", messages=CAPITAL)
    assert missing.value.code == "model_not_found"


def test_a_body_that_is_no_json(app) -> None:
    refused = httpx.post(f"{app.url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_who_goes_away_takes_the_answer_along(app, ask) -> None:
    with ask(STORY, stream=True, max_tokens=4000) as stream:
        next(iter(stream))
        assert busy(app) == 1
    until(lambda: busy(app) == 0)
    with pytest.raises(openai.APITimeoutError):
        ask(STORY, max_tokens=4000, timeout=1.5)
    until(lambda: busy(app) == 0)


def test_a_full_queue_says_when_to_come_again(app, ask) -> None:
    """More than the engine's slots and queue hold."""
    url, body = f"{app.url}/v1/chat/completions", {"model": MODEL, "messages": STORY, "n": 16, "max_tokens": 4000}

    def post(_: int) -> httpx.Response | None:
        try:
            return httpx.post(url, json=body, timeout=15)
        except httpx.TimeoutException:
            return None

    with ThreadPoolExecutor(22) as threads:
        refused = [response for response in threads.map(post, range(22)) if response is not None]
    assert refused
    for response in refused:
        assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(response.headers["retry-after"]) > 0
    until(lambda: busy(app) == 0)
    assert ask(CAPITAL).choices[0].message.content == PARIS


def test_an_answer_within_a_chat(app, ask) -> None:
    page = Client(app.url, verbose=False)
    options = {"extra_headers": {"X-LLMSVC-Session": "new"}}
    first = ask(CAPITAL, stream=True, **options)
    session = first.response.headers["x-llmsvc-session"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in first) == PARIS
    options["extra_headers"]["X-LLMSVC-Session"] = session
    said = ask([{"role": "user", "content": "What is it known for?"}], **options).choices[0].message.content
    assert "Paris" in said or "Eiffel" in said  # the chat's own history was read
    kept = page.predict(session, api_name="/session_get")["messages"]
    assert [message["content"] for message in kept] == [CAPITAL[0]["content"], PARIS, "What is it known for?", said]
    for change in ({"n": 2}, {"tools": [TOOL]}, {"logprobs": True}):
        with pytest.raises(openai.BadRequestError, match="one answer"):
            ask(CAPITAL, **options, **change)
    with pytest.raises(openai.NotFoundError, match="no such chat"):
        ask(CAPITAL, extra_headers={"X-LLMSVC-Session": "0" * 32})
