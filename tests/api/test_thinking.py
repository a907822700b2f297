"""What a model thinks before it answers, through every door: by the real clients, from a model that writes scripts."""

import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from clients import MODEL, OSLO, until
from conftest import App
from gradio_client import Client
from gradio_client.exceptions import AppError
from test_turns import sse
from thinker import ANSWER, LONG, THOUGHT

ASKED = [{"role": "user", "content": "Is it so?"}]
LONGER = [{"role": "user", "content": "Think long about it."}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OFF = {"thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def api(thinker) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(thinker) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=thinker.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(thinker) -> Client:
    return Client(thinker.url, verbose=False)


@pytest.fixture
def session(client) -> str:
    return str(client.predict(api_name="/session_create")["id"])


def last(client: Client, session: str) -> dict[str, Any]:
    message: dict[str, Any] = client.predict(session, api_name="/session_get")["messages"][-1]
    return message


# OpenAI: chat completions


def test_chat_completions_have_reasoning_beside_their_content(api) -> None:
    answer = api.chat.completions.create(model=MODEL, messages=ASKED)
    message, usage = answer.choices[0].message, answer.usage
    assert (message.content, message.reasoning_content, message.reasoning) == (ANSWER, THOUGHT, THOUGHT)
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    parts = {"reasoning_content": "", "content": ""}
    order = []
    for chunk in api.chat.completions.create(model=MODEL, messages=ASKED, stream=True):
        for name in parts:
            if text := getattr(chunk.choices[0].delta, name, None):
                parts[name] += text
                order.append(name)
    assert parts == {"reasoning_content": THOUGHT, "content": ANSWER}
    assert order == sorted(order, reverse=True)  # no reasoning behind the first word


@pytest.mark.parametrize(
    "off", [{"reasoning_effort": "none"}, OFF, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_thinking_can_be_switched_off(api, off: dict[str, Any]) -> None:
    answer = api.chat.completions.create(model=MODEL, messages=ASKED, extra_body=off)
    assert answer.choices[0].message.content == ANSWER
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_an_effort_that_there_is_not_is_refused(api, claude) -> None:
    with pytest.raises(openai.BadRequestError, match=r"minimal, low, medium, high.*banana"):
        api.chat.completions.create(model=MODEL, messages=ASKED, reasoning_effort="banana")
    with pytest.raises(openai.BadRequestError, match=r"reasoning\.effort"):
        api.responses.create(model=MODEL, input=ASKED, reasoning={"effort": "banana"})
    with pytest.raises(anthropic.BadRequestError, match="effort"):
        claude.messages.create(model=MODEL, max_tokens=50, messages=ASKED, output_config={"effort": "banana"})
    for effort in ("minimal", "low", "medium", "high", "xhigh"):  # this model knows on and off only
        answer = api.chat.completions.create(model=MODEL, messages=ASKED, reasoning_effort=effort)
        assert answer.choices[0].message.reasoning_content == THOUGHT


def test_a_budget_ends_the_reasoning(api, claude) -> None:
    bounded = {"thinking": {"type": "enabled", "budget_tokens": 12}}
    answer = api.chat.completions.create(model=MODEL, messages=LONGER, extra_body=bounded)
    message = answer.choices[0].message
    assert message.content == ANSWER
    assert LONG.startswith(message.reasoning_content)
    assert 12 <= answer.usage.completion_tokens_details.reasoning_tokens < 24  # and the marks behind
    said = claude.messages.create(model=MODEL, max_tokens=90, messages=LONGER, **bounded)
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[1].text == ANSWER


def test_an_answer_that_is_bound_to_a_form_is_no_reasoning(api) -> None:
    """Its first token is the form's, so nothing can be thought before."""
    asked = {"model": MODEL, "messages": ASKED, "response_format": {"type": "json_object"}}
    message = api.chat.completions.create(**asked).choices[0].message
    assert (message.content, hasattr(message, "reasoning_content")) == (ANSWER, False)


def test_reasoning_may_be_sent_back(api) -> None:
    before = api.chat.completions.create(model=MODEL, messages=ASKED).usage.prompt_tokens
    said = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    answer = api.chat.completions.create(model=MODEL, messages=[*ASKED, said, *ASKED])
    assert answer.choices[0].message.content == ANSWER
    # The template shows no earlier reasoning, so nothing of it is read again.
    assert answer.usage.prompt_tokens < 3 * before
    cut = {"role": "assistant", "content": "", "reasoning_content": THOUGHT[:20]}
    answer = api.chat.completions.create(model=MODEL, messages=[*ASKED, cut])
    assert (answer.choices[0].message.reasoning_content, answer.choices[0].message.content) == (THOUGHT[20:], ANSWER)


def test_calls_stand_behind_the_reasoning(api, claude) -> None:
    tool = {"name": "weather", "parameters": WEATHER}
    asked = {"model": MODEL, "messages": [OSLO], "tools": [{"type": "function", "function": tool}]}
    answer = api.chat.completions.create(**asked).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert answer.message.reasoning_content == THOUGHT
    streamed = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, stream=True)]
    (call,) = [call for chunk in streamed for call in chunk.delta.tool_calls or ()]
    assert (call.function.name, streamed[-1].finish_reason) == ("weather", "tool_calls")
    tools = [{"name": "weather", "input_schema": WEATHER}]
    with claude.messages.stream(model=MODEL, max_tokens=90, messages=[OSLO], tools=tools) as events:
        said = events.get_final_message()
    assert [block.type for block in said.content] == ["thinking", "text", "tool_use"]
    assert (said.content[2].input, said.stop_reason) == ({"city": "Oslo"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": said.content[2].id, "content": "It is raining."}
    rows = [OSLO, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    more = claude.messages.create(model=MODEL, max_tokens=90, messages=rows, tools=tools)
    assert more.content[0].type == "thinking"


# OpenAI: responses


def test_responses_have_reasoning_items(api) -> None:
    answer = api.responses.create(model=MODEL, input=ASKED)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == THOUGHT
    assert answer.output_text == ANSWER
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    deltas = {"response.reasoning_text.delta": "", "response.output_text.delta": ""}
    with api.responses.stream(model=MODEL, input=ASKED) as events:
        for event in events:
            if event.type in deltas:
                deltas[event.type] += event.delta
        final = events.get_final_response()
    assert list(deltas.values()) == [THOUGHT, ANSWER]
    assert [item.type for item in final.output] == ["reasoning", "message"]
    again = api.responses.create(model=MODEL, input=[*ASKED, *answer.output, *ASKED])
    assert again.output_text == ANSWER
    off = api.responses.create(model=MODEL, input=ASKED, reasoning={"effort": "none"})
    assert [item.type for item in off.output] == ["message"]


# Anthropic


def test_messages_have_thinking_blocks(claude) -> None:
    asked = {"model": MODEL, "max_tokens": 90, "messages": ASKED}
    answer = claude.messages.create(**asked)
    thought, words = answer.content
    assert (thought.type, thought.thinking, words.text) == ("thinking", THOUGHT, ANSWER)
    assert thought.signature
    assert answer.usage.output_tokens_details.thinking_tokens > 0
    with claude.messages.stream(**asked) as events:
        kinds = [event.delta.type for event in events if event.type == "content_block_delta"]
        streamed = events.get_final_message()
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    assert (streamed.content[0], streamed.content[1].text) == (thought, ANSWER)
    rows = [*ASKED, {"role": "assistant", "content": answer.content}, *ASKED]
    assert claude.messages.create(**asked | {"messages": rows}).content == answer.content
    assert [block.type for block in claude.messages.create(**asked, **OFF).content] == ["text"]
    hidden = claude.messages.create(**asked, thinking={"type": "adaptive", "display": "omitted"}).content[0]
    assert (hidden.thinking, hidden.signature) == ("", thought.signature)


# The named endpoints


def test_a_chat_keeps_its_reasoning_apart(client, session) -> None:
    job = client.submit(session, "Is it so?", api_name="/chat")
    text, status = job.result(timeout=60)
    assert (text, status["reasoning"]) == (ANSWER, THOUGHT)
    message = last(client, session)
    assert (message["content"], message["reasoning"]) == (ANSWER, THOUGHT)
    usage = message["usage"]
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]
    assert usage["thinking_seconds"] > 0
    assert sum(message["context"][part] for part in ("system", "message")) == usage["prompt_tokens"]
    grown = [frame[1]["reasoning"] for frame in job.outputs()]
    assert grown == sorted(grown, key=len)
    assert len(set(grown)) > 2


def test_thinking_is_chosen_for_a_message_a_chat_and_a_model(client, session) -> None:
    thought = lambda **more: client.predict(session, "Is it so?", api_name="/chat", **more)[1]["reasoning"]  # noqa: E731
    assert thought(thinking="off") == ""
    assert client.predict(session, {"thinking": "off"}, api_name="/session_settings")["thinking"] == "off"
    assert thought() == ""
    assert thought(thinking="on") == THOUGHT
    message = last(client, session)["id"]
    assert client.predict(session, message, api_name="/regenerate")[1]["reasoning"] == ""
    assert client.predict(session, message, "on", api_name="/regenerate")[1]["reasoning"] == THOUGHT
    asked = client.predict(session, api_name="/session_get")["messages"][0]["id"]
    assert client.predict(session, asked, "And so?", "on", api_name="/edit")[1]["reasoning"] == THOUGHT
    assert client.predict(session, {"thinking": None}, api_name="/session_settings")["thinking"] == ""
    text, status = client.predict(session, "Think long.", thinking_budget=12, api_name="/chat")
    assert (text, len(status["reasoning"]) < len(LONG)) == (ANSWER, True)


@pytest.mark.parametrize(
    ("endpoint", "arguments"),
    [
        ("/chat", ("Is it so?", MODEL)),
        ("/session_settings", ()),
        ("/settings_set", ()),
    ],
)
def test_a_mode_that_the_model_has_not_is_refused_with_those_that_it_has(client, session, endpoint, arguments) -> None:
    for mode, known in (("high", "off, on"), ("much", "off, on, low, medium, high")):
        if endpoint == "/chat":
            ask = lambda mode=mode: client.predict(session, *arguments, thinking=mode, api_name=endpoint)  # noqa: E731
        elif endpoint == "/session_settings":
            ask = lambda mode=mode: client.predict(session, {"thinking": mode}, api_name=endpoint)  # noqa: E731
        else:
            ask = lambda mode=mode: client.predict({"thinking": mode}, MODEL, api_name=endpoint)  # noqa: E731
        with pytest.raises(AppError, match=known):
            ask()
    with pytest.raises(AppError, match="thinking_budget"):
        client.predict(session, "Is it so?", thinking_budget=-1, api_name="/chat")


def test_an_answer_that_was_cut_in_its_reasoning_goes_on_there(client, session) -> None:
    text, status = client.predict(session, "Think long.", max_tokens=20, api_name="/chat")
    assert (text, status["usage"]["finish_reason"]) == ("", "length")
    assert LONG.startswith(status["reasoning"])
    tokens, seconds = status["usage"]["reasoning_tokens"], status["usage"]["thinking_seconds"]
    text, status = client.predict(session, api_name="/continue")  # with the options of its first part
    assert (text, status["usage"]["reasoning_tokens"]) == ("", tokens + 20)
    assert status["usage"]["thinking_seconds"] >= seconds
    assert LONG.startswith(status["reasoning"])


def test_an_answer_that_was_stopped_in_its_reasoning_goes_on_to_its_words(client, session) -> None:
    job = client.submit(session, "Think long.", api_name="/chat")
    until(lambda: client.predict(session, api_name="/session_get")["messages"] and last(client, session)["reasoning"])
    client.predict(session, api_name="/stop")
    assert job.result(timeout=60)[1]["state"] == "stopped"
    stopped = last(client, session)
    assert LONG.startswith(stopped["reasoning"])
    assert stopped["content"] == ""
    text, status = client.predict(session, api_name="/continue")
    assert (text, status["reasoning"]) == (ANSWER, LONG)


def test_events_resume_exactly_in_both_texts(thinker, client, session) -> None:
    client.submit(session, "Think long about it.", api_name="/chat")
    until(lambda: client.predict(session, api_name="/session_get")["messages"])
    reasoning, text, last_id, events, event = "", "", "", 0, ""
    while event != "end":
        for event, last_id, data in sse(thinker, session, last_id):  # noqa: B007, B020
            events += 1
            if "reasoning_length" in data:
                assert data["reasoning_offset"] == len(reasoning)
                reasoning += data["reasoning"]
                assert data["reasoning_length"] == len(reasoning)
            assert data["offset"] == len(text)
            text += data["text"]
            if event == "end" or events % 5 == 0:
                break
    assert (reasoning, text) == (LONG, ANSWER)
    url = f"{thinker.url}/v1/sessions/{session}/stream"
    assert httpx.get(url, headers={"Last-Event-ID": last_id}).status_code == 204
    now = httpx.get(f"{thinker.url}/v1/sessions/{session}/turn").json()
    assert (now["reasoning"], now["text"]) == (LONG, ANSWER)


def test_a_chat_of_a_script_has_its_reasoning(api, client) -> None:
    with api.chat.completions.with_streaming_response.create(
        model=MODEL, messages=ASKED, reasoning_effort="high", extra_headers={"X-LLMSVC-Session": "new"}
    ) as response:
        answer = response.parse()
        session = response.headers["X-LLMSVC-Session"]
    assert (answer.choices[0].message.content, answer.choices[0].message.reasoning_content) == (ANSWER, THOUGHT)
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    assert last(client, session)["reasoning"] == THOUGHT


@pytest.mark.parametrize("format_", ["json", "markdown"])
def test_what_is_exported_has_the_reasoning(client, session, format_: str) -> None:
    client.predict(session, "Is it so?", api_name="/chat")
    text = client.predict(session, format_, api_name="/session_export")
    brought = client.predict(text, api_name="/session_import")["id"]
    message = last(client, brought)
    assert (message["content"], message["reasoning"]) == (ANSWER, THOUGHT)


def test_a_loop_that_was_ended_is_no_answer_to_continue(client, session, api) -> None:
    status = client.predict(session, "loop", api_name="/chat")[1]
    assert (status["state"], status["usage"]["finish_reason"]) == ("done", "repetition")
    with pytest.raises(AppError, match="nothing to continue"):
        client.predict(session, api_name="/continue")
    answer = api.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "loop"}])
    assert answer.choices[0].finish_reason == "length"


def test_a_title_is_made_of_the_answer(client, session) -> None:
    client.predict(session, "Is it so?", api_name="/chat")
    named = until(
        lambda: [
            row
            for row in client.predict(api_name="/session_list")
            if row["id"] == session and row["title"] != "Is it so?"
        ]
    )
    (title,) = (row["title"] for row in named)
    assert title == "It is *so*"


def test_what_a_model_on_another_server_thinks_is_told_apart_as_well(thinker, tmp_path) -> None:
    page = App(tmp_path / "data", "--remote", thinker.url, "--model", f"remote:{MODEL}").wait()
    try:
        client = Client(page.url, verbose=False)
        session = client.predict(api_name="/session_create")["id"]
        options = {"top_k": 0, "api_name": "/chat"}
        text, status = client.predict(session, "Is it so?", **options)
        assert (text, status["reasoning"]) == (ANSWER, THOUGHT)
        text, status = client.predict(session, "And so?", **options)  # its history is sent without reasoning
        assert (text, status["reasoning"], last(client, session)["reasoning"]) == (ANSWER, THOUGHT, THOUGHT)
    finally:
        page.stop()


# What a model brings


def test_a_models_own_sampling_stands_where_the_user_set_none(client, session) -> None:
    of_model = client.predict(MODEL, api_name="/settings_get")
    assert {**of_model["from_model"], "system": ""} == {"temperature": 0.6, "top_k": 20, "system": ""}
    assert (of_model["temperature"], of_model["top_k"], of_model["top_p"]) == (0.6, 20, 0.95)
    assert client.predict(api_name="/settings_get")["temperature"] == 0.2
    used = lambda: (client.predict(session, "Is it so?", api_name="/chat"), last(client, session))[1]["options"]  # noqa: E731
    assert (used()["temperature"], used()["top_k"]) == (0.6, 20)
    try:
        client.predict({"temperature": 0.3}, api_name="/settings_set")
        assert (used()["temperature"], used()["top_k"]) == (0.3, 20)
        client.predict({"top_k": 5}, MODEL, api_name="/settings_set")
        assert client.predict(session, {"temperature": 0.1}, api_name="/session_settings")["from_model"]["top_k"] == 20
        assert (used()["temperature"], used()["top_k"]) == (0.1, 5)
    finally:
        client.predict({"temperature": None}, api_name="/settings_set")
        client.predict({"top_k": None}, MODEL, api_name="/settings_set")


# What is odd


ODD = [
    ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": ["x"], "text": "a"}]}]}),
    ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": {"a": 1}, "text": "a"}]}]}),
    ("/v1/chat/completions", {"messages": ASKED, "chat_template_kwargs": {"x\ud800": 1}}),
    ("/v1/chat/completions", {"messages": ASKED, "chat_template_kwargs": {"conversations": "z"}}),
    ("/v1/chat/completions", {"messages": ASKED, "chat_template_kwargs": {"chat_template": "z"}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\ud800"}]}]}),
    ("/v1/chat/completions", {"messages": ASKED, "a\ud800": 1, "n": "a\ud800"}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                *ASKED,
                {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[" * 20_000}}]},
            ]
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": ASKED,
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"properties": 5}}}],
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), ODD, ids=range(len(ODD)))
def test_what_no_model_can_read_is_refused_in_words(thinker, path, body) -> None:
    sent = json.dumps({"model": MODEL, **body})
    answer = httpx.post(f"{thinker.url}{path}", content=sent, headers={"Content-Type": "application/json"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), answer.text


def test_every_api_takes_thinking_and_the_templates_variables(api, claude) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for extra in (off, OFF):
        answered = api.responses.create(model=MODEL, input="Is it so?", extra_body=extra)
        assert [item.type for item in answered.output] == ["message"]
        said = claude.messages.create(model=MODEL, max_tokens=90, messages=ASKED, extra_body=extra)
        assert [block.type for block in said.content] == ["text"]
    within = {"X-LLMSVC-Session": "new"}
    with pytest.raises(openai.BadRequestError, match="chat_template_kwargs"):
        api.chat.completions.create(model=MODEL, messages=ASKED, extra_body=off, extra_headers=within)


def test_a_reasoning_item_without_text_is_no_message(api) -> None:
    said = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    empty = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"}
    count = lambda items: api.responses.create(model=MODEL, input=items).usage.input_tokens  # noqa: E731
    assert count([said[0], empty, *said[1:]]) == count(said)
    assert count([*said, empty]) == count(said)
