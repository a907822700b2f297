"""Answers of gpt-oss, in its channels. The examples are those of https://github.com/openai/harmony, docs/format.md."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.formats.harmony import HarmonyReader
from llmsvc.formats.reasoning import HARMONY
from llmsvc.formats.said import Said

NEXT = "<|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>Need to use get_weather.<|end|>"
ARGUMENTS = '<|message|>{"location":"San Francisco"}<|call|>'
CALLS = [
    f"{NEXT}<|channel|>commentary to=functions.get_weather <|constrain|>json{ARGUMENTS}",
    f"{NEXT}<|channel|>commentary to=functions.get_weather<|constrain|>json{ARGUMENTS}",
    f"{NEXT} to=functions.get_weather<|channel|>commentary json{ARGUMENTS}",
    f"{NEXT} to=functions.get_weather<|channel|>commentary <|constrain|>json{ARGUMENTS}",
    f"{NEXT}<|channel|>analysis to=functions.get_weather code{ARGUMENTS}",
    f"{NEXT}<|channel|>commentary to=get_weather <|constrain|>json{ARGUMENTS}",
]


def read(*pieces: str, opened: bool = False, continued: bool = False) -> Said:
    reader = HarmonyReader(["get_weather", "look_up"], opened=opened, continued=continued)
    said = [*(reader.push(piece) for piece in pieces), reader.finish()]
    calls = tuple(call for one in said for call in one.calls)
    return Said("".join(one.text for one in said), "".join(one.reasoning for one in said), calls)


def named(said: Said) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in said.calls]


@pytest.mark.parametrize("call", CALLS)
def test_calls_in_every_form(call: str) -> None:
    for answer in (THOUGHT + call, (THOUGHT + call).removesuffix("<|call|>")):
        for pieces in ([answer], list(answer)):
            said = read(*pieces)
            assert (said.text, said.reasoning) == ("", "Need to use get_weather.")
            assert named(said) == [("get_weather", '{"location": "San Francisco"}')]


def test_a_call_at_the_beginning() -> None:
    said = read(*f" to=functions.get_weather<|channel|>commentary json{ARGUMENTS}")
    assert (said.text, named(said)) == ("", [("get_weather", '{"location": "San Francisco"}')])


def test_several_calls_and_a_preamble() -> None:
    preamble = f"{NEXT}<|channel|>commentary<|message|>**Plan**: look twice.<|end|>"
    other = f"{NEXT}<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>{{}}<|call|>"
    said = read(*(THOUGHT + preamble + CALLS[0] + other))
    assert (said.text, said.reasoning) == ("**Plan**: look twice.", "Need to use get_weather.")
    assert named(said) == [("get_weather", '{"location": "San Francisco"}'), ("look_up", "{}")]


def test_messages_of_one_kind_have_a_blank_line_between() -> None:
    more = f"{NEXT}<|channel|>analysis<|message|>Then answer.<|end|>"
    last = f"{NEXT}<|channel|>commentary<|message|>I look.<|end|>{NEXT}<|channel|>final<|message|>Sun.<|return|>"
    said = read(*(THOUGHT + more + last))
    assert said == Said("I look.\n\nSun.", "Need to use get_weather.\n\nThen answer.")


def test_who_is_no_tool_is_not_called() -> None:
    answer = f"{THOUGHT}{NEXT}<|channel|>commentary to=functions.other json<|message|>{{}}<|call|>"
    assert read(*answer) == Said("{}", "Need to use get_weather.")
    python = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
    assert read(*python) == Said(reasoning="print(1)")


def test_arguments_that_are_none_are_words() -> None:
    cut = '<|channel|>commentary to=functions.get_weather json<|message|>{"location": "San'
    assert read(*cut) == Said('{"location": "San')


def test_answers_that_go_on() -> None:
    assert read(*" francs.<|return|>", continued=True) == Said(" francs.")
    rest = " weather.<|end|><|start|>assistant<|channel|>final<|message|>Sun."
    assert read(*rest, opened=True, continued=True) == Said("Sun.", " weather.")


def test_a_model_that_writes_no_channels() -> None:
    assert read(*'{"city": "Rome"}') == Said('{"city": "Rome"}')
    assert read(*"Total: 4 <|end|> and more") == Said("Total: 4  and more")


def test_messages_without_their_last_mark() -> None:
    answer = "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Sun."
    assert read(*answer) == Said("Sun.", "Hm.")
    assert read(*"<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Sun.") == Said("Sun.", "Hm.")
    assert read(*"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>fi") == Said(reasoning="Hm.")


@given(st.sampled_from(CALLS), st.lists(st.integers(0, 300), max_size=12), st.integers(0, 300))
def test_pieces_and_ends_of_any_size(call: str, places: list[int], end: int) -> None:
    answer = (THOUGHT + call)[: end % 300]
    ends = sorted({0, len(answer), *(place % (len(answer) + 1) for place in places)})
    pieces = [answer[start:end] for start, end in itertools.pairwise(ends)]
    said, whole = read(*pieces), read(answer)
    assert (said.text, said.reasoning, named(said)) == (whole.text, whole.reasoning, named(whole))
    assert not any(mark in said.text + said.reasoning for mark in HARMONY.marks)
