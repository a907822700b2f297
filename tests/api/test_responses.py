"""OpenAI's Responses API and embeddings through the official client."""

import base64
import json
import math

import httpx
import openai
import pytest
from clients import CAPITAL, MODEL, OSLO, PARIS, STORY, WEATHER
from openai import OpenAI
from pydantic import BaseModel

TOOL = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": WEATHER, "strict": True}
ASK = {"model": MODEL, "max_output_tokens": 60, "temperature": 0}


@pytest.fixture(scope="module")
def api(app) -> OpenAI:
    return OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_an_answer(api) -> None:
    answer = api.responses.create(input=CAPITAL[0]["content"], **ASK)
    assert (answer.output_text, answer.status) == (PARIS, "completed")
    assert answer.usage.output_tokens == 8
    listed = api.responses.create(instructions="Answer in one word.", input=CAPITAL, **ASK)
    assert "Paris" in listed.output_text
    cut = api.responses.create(input=STORY, **{**ASK, "max_output_tokens": 3})
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_is_the_same_answer(api) -> None:
    with api.responses.stream(input=CAPITAL, **ASK) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == PARIS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (final.output_text, final.status) == (PARIS, "completed")


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_by_a_schema(api) -> None:
    answer = api.responses.parse(input="Give me a person: Anna, who is 31.", text_format=Person, **ASK)
    assert isinstance(answer.output_parsed, Person)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(api, streamed) -> None:
    asked = {"input": [OSLO], "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **ASK}
    if streamed:
        with api.responses.stream(**asked) as stream:
            answer = stream.get_final_response()
    else:
        answer = api.responses.create(**asked)
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments)["unit"] in ("celsius", "fahrenheit")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7 degrees and rain."}
    said = api.responses.create(input=[OSLO, call.model_dump(exclude_none=True), result], **ASK).output_text
    assert "7" in said or "rain" in said


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-5"}, 404, "gpt-5"),
        ({"previous_response_id": "resp_1"}, 400, "not stored"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, 400, "text only"),
        ({"input": []}, 400, "no messages"),
    ],
)
def test_errors(api, change, status, words) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        api.responses.create(**{**ASK, "input": CAPITAL, **change})
    assert refused.value.status_code == status
    assert words in refused.value.body["message"]


def similarity(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_embeddings(app, api) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by two percent."]
    found = api.embeddings.create(model=MODEL, input=texts)
    cat, sitting, rates = (row.embedding for row in found.data)  # the client asks for base64
    assert math.isclose(similarity(cat, cat), 1, rel_tol=1e-5)
    assert similarity(cat, sitting) > similarity(cat, rates)
    assert found.usage.prompt_tokens > 15
    plain = httpx.post(f"{app.url}/v1/embeddings", json={"model": MODEL, "input": texts[0]}, timeout=60).json()
    assert plain["data"][0]["embedding"] == pytest.approx(cat, abs=1e-5)
    coded = httpx.post(
        f"{app.url}/v1/embeddings", json={"model": MODEL, "input": [1, 2, 3], "encoding_format": "base64"}, timeout=60
    ).json()
    assert len(base64.b64decode(coded["data"][0]["embedding"])) == 4 * len(cat)


def test_a_long_text_is_read_in_pieces(api) -> None:
    """The mean over a text does not hang on how it was cut."""
    sentence = "The lighthouse stands above the sea. "
    long, short = (api.embeddings.create(model=MODEL, input=sentence * n).data[0].embedding for n in (60, 1))
    assert 0.5 < similarity(long, short) < 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"input": ""}, 400, "empty"),
        ({"input": []}, 400, "1 to"),
        ({"input": [999999999]}, 400, "number from"),
        ({"input": "word " * 9000}, 400, "reads at most"),
        ({"model": "text-embedding-3-small"}, 404, "text-embedding-3-small"),
        ({"dimensions": 12}, 400, "dimensions"),
    ],
)
def test_errors_of_embeddings(api, change, status, words) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        api.embeddings.create(**{"model": MODEL, "input": "Hello", **change})
    assert refused.value.status_code == status
    assert words in refused.value.body["message"]
