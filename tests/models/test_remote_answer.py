"""How the dialects of other servers are read, and addresses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.errors import BadRequest, Busy, Unavailable
from llmsvc.models.remote_answer import RemoteAnswer
from llmsvc.models.server import address

QUESTION = {"role": "user", "content": "Hello"}


def read(*chunks: dict[str, Any], begun: str = "") -> tuple[str, list[TokenEvent], RemoteAnswer]:
    """The text and events of an answer that came in these chunks; ``begun``: what it continues."""
    events: list[TokenEvent] = []
    source = (QUESTION, {"role": "assistant", "content": begun}) if begun else (QUESTION,)
    answer = RemoteAnswer(GenerationRequest("1", (1,), SamplingParams(), events.append, source=source))
    for chunk in chunks:
        assert not answer.take(f"data: {json.dumps(chunk)}".encode())
        assert not answer.take(b"")
        assert not answer.take(b": waiting\r")
    assert answer.take(b"data: [DONE]\r")
    answer.end(answer.finish or FinishReason.STOP)
    return "".join(event.text for event in events), events, answer


def part(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, **more}]}


@given(
    st.lists(st.text(), max_size=8),
    st.lists(st.text(), max_size=8),
    st.sampled_from(["reasoning_content", "reasoning"]),
)
def test_thoughts_and_words_are_told_apart(thoughts: list[str], words: list[str], name: str) -> None:
    """However they are cut into chunks, and whatever they say."""
    chunks = [part({"role": "assistant", "content": None})]
    chunks += [part({name: text}) for text in thoughts] + [part({"content": text}) for text in words]
    text, events, _ = read(*chunks, part({}, finish_reason="stop"), {"choices": [], "usage": {"completion_tokens": 99}})
    assert "".join(event.reasoning for event in events) == "".join(thoughts)
    assert text == "".join(words)
    assert [event.tokens for event in events] == sorted(event.tokens for event in events)
    assert (events[-1].tokens, events[-1].finish_reason) == (99, FinishReason.STOP)


@given(st.text(alphabet="ab \n", min_size=1), st.text(alphabet="ab \n"), st.sampled_from(["\n", " ", "", " \n\n"]))
def test_white_space_where_an_answer_goes_on_is_not_doubled(begun: str, rest: str, space: str) -> None:
    begun = f"x{begun.rstrip()}{space}"
    goes_on, _, _ = read(part({"content": space + rest}), part({}, finish_reason="stop"), begun=begun)
    assert begun + goes_on == begun + rest


def test_numbers_of_the_last_event() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    end = part({}, finish_reason="stop", stop_reason="###")
    _, events, _ = read(part({"content": "Hi"}), end, {"choices": [], "usage": usage})
    last = events[-1]
    assert (last.prompt_tokens, last.tokens, last.cached_tokens, last.stop) == (12, 3, 8, "###")
    assert read(part({"content": "Hi"}, finish_reason="length"))[1][-1].finish_reason is FinishReason.LENGTH
    assert read({"choices": [{"text": "Hi", "finish_reason": "stop"}], "usage": None})[0] == "Hi"


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        ({"error": {"message": "too long", "type": "invalid_request_error"}}, BadRequest),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, BadRequest),
        ({"type": "error", "error": {"message": "later", "type": "rate_limit_error"}}, Busy),
        ({"error": {"message": "out of memory", "type": "server_error", "code": 500}}, Unavailable),
        ({"error": "out of memory"}, Unavailable),
    ],
)
def test_errors_within_a_stream(chunk: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read(chunk)


@pytest.mark.parametrize(
    ("given", "key", "found"),
    [
        (" http://Host:8000/v1/ ", "", ("http://host:8000", "")),
        ("https://host/proxy/v1", "k", ("https://host/proxy", "k")),
        ("http://:secret@host:1", "", ("http://host:1", "secret")),
        ("http://[::1]:8000", "", ("http://[::1]:8000", "")),
    ],
)
def test_an_address(given: str, key: str, found: tuple[str, str]) -> None:
    assert address(given, key) == found


@pytest.mark.parametrize(
    "given", ["", "host:8000", "ftp://host", "http://", "http://h:x", "http://h?a=1", "http://h\nx"]
)
def test_no_address(given: str) -> None:
    with pytest.raises(BadRequest, match="no address"):
        address(given)
