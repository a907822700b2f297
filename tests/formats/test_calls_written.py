"""Any calls in any format, cut into any pieces, are read back as they were."""

import json
import string
from itertools import pairwise

import pytest
from calls_published import SAMPLES, TOOLS, Calls
from calls_written import WRITTEN
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsvc.formats.calls import call_format_of

FEW = settings(max_examples=20, deadline=None)  # for each of 34 formats
FORMATS = {known.name: known for known in (call_format_of(sample.template) for sample in SAMPLES)}
CODE = 'def f(x: str = "a\'b") -> dict:\n\treturn {"k": [x, {"\\n": (1, 2)}]}  # <b>\n'

PLAIN = st.text(string.ascii_letters + string.digits + " \n\t\"'\\{}[]():,;=<>/|`&#é€😀中", max_size=30)
TEXTS = PLAIN | st.sampled_from([CODE, "007", "true", "null", "", "\n", " x ", "</parameter>", "3.0", "[]", '"'])
FLOATS = st.floats(-1e9, 1e9, allow_nan=False).map(lambda number: round(number, 3))
CALLS = st.one_of(
    st.tuples(st.just("now"), st.just({})),
    st.tuples(st.just("run"), st.fixed_dictionaries({"command": TEXTS})),
    st.tuples(st.just("add"), st.fixed_dictionaries({"a": st.integers(), "b": FLOATS})),
    st.tuples(
        st.just("register_user"),
        st.fixed_dictionaries(
            {"name": TEXTS, "age": st.integers(0, 150)},
            optional={
                "address": st.fixed_dictionaries({"city": PLAIN}, optional={"state": PLAIN}),
                "passed_test": st.booleans(),
                "aliases": st.lists(PLAIN, max_size=3),
            },
        ),
    ),
)


def read(name: str, text: str, cuts: list[int]) -> tuple[str, Calls]:
    reader, words, calls = FORMATS[name].reader(TOOLS), "", []
    for start, end in pairwise([0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]):
        more, found = reader.push(text[start:end])
        words, calls = words + more, calls + found
    more, found = reader.finish()
    return words + more, [(call.name, json.loads(call.arguments)) for call in calls + found]


def test_every_format_is_written() -> None:
    assert set(WRITTEN) == set(FORMATS)


@pytest.mark.parametrize("name", WRITTEN)
@FEW
@given(calls=st.lists(CALLS, min_size=1, max_size=3), cuts=st.lists(st.integers(0, 999), max_size=12))
@example(calls=[("run", {"command": CODE})], cuts=list(range(500)))
def test_calls_are_read_back(name: str, calls: Calls, cuts: list[int]) -> None:
    assert read(name, WRITTEN[name](calls), cuts) == ("", calls)


@pytest.mark.parametrize("name", WRITTEN)
@FEW
@given(
    before=st.text(string.ascii_letters + " \n.,", min_size=1).filter(str.strip),
    after=st.text(string.ascii_letters + " \n.,", min_size=1).filter(str.strip),
    cuts=st.lists(st.integers(0, 999), max_size=12),
)
def test_words_around_calls_survive(name: str, before: str, after: str, cuts: list[int]) -> None:
    calls = [("now", {}), ("add", {"a": 1, "b": 2.5})]
    if name in ("json-list", "llama-json"):
        before = before.strip() + "\n"
    text = f"{before}{WRITTEN[name](calls)} {after}"
    assert read(name, text, cuts) == (before + after.lstrip(), calls)


@pytest.mark.parametrize("name", WRITTEN)
@FEW
@given(st.data())
def test_no_text_without_calls_is_lost(name: str, data: st.DataObject) -> None:
    marks = [*FORMATS[name].marks, *'<>{}[]()"`\n', "name", "call", "now", "now(", "```json", '{"name": "now"', " "]
    text = "".join(data.draw(st.lists(st.sampled_from(marks), max_size=12)))
    words, calls = read(name, text, data.draw(st.lists(st.integers(0, 99), max_size=8)))
    whole = read(name, text, [])
    assert (words, calls) == whole
    assert calls or words == text


@pytest.mark.parametrize("name", WRITTEN)
def test_an_unknown_tool_is_no_call(name: str) -> None:
    text = WRITTEN[name]([("unknown_tool", {"x": "y"})])
    assert read(name, text, list(range(len(text)))) == (text, [])


@pytest.mark.parametrize("name", WRITTEN)
def test_the_last_mark_may_be_missing(name: str) -> None:
    calls = [("add", {"a": 1, "b": 2.5})]
    text = WRITTEN[name](calls)
    closers = sorted(FORMATS[name].closers or FORMATS[name].marks[1:], key=len, reverse=True)
    for closer in closers:
        text = text.rstrip().removesuffix(closer)
    assert read(name, text, []) == ("", calls)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_that_was_cut_is_shown(name: str) -> None:
    text = WRITTEN[name]([("run", {"command": "echo a long line of words"})])
    cut = text[: text.index("long")]
    assert read(name, cut, list(range(len(cut)))) == (cut, [])
