"""Answers that are bound to calls of their family, by a real tokenizer, with its marks as tokens and without."""

import copy
import json
from typing import Any

import pytest
import torch
from calls_published import SAMPLES, STRING, TOOLS, Calls, tool
from calls_written import WRITTEN

from llmsvc.engine.constraint import Constraint, Constraints, lark
from llmsvc.engine.request import SamplingParams
from llmsvc.errors import BadRequest
from llmsvc.formats.calls import CallFormat, call_format_of
from llmsvc.formats.tools import Tool, Tools

FORMATS = {known.name: known for known in (call_format_of(sample.template) for sample in SAMPLES)}
CALLS: Calls = [
    ("get_weather", {"city": "Paris", "unit": "celsius"}),
    ("run", {"command": "for x in y:\n    print('{}', \"é\")\n"}),
    ("now", {}),
    (
        "register_user",
        {"name": "Jo <b> O'Neil", "age": 37, "address": {"city": "Rome"}, "passed_test": True, "aliases": ["a", "b c"]},
    ),
]
ONE_CALL = ("harmony", "llama-json", "gigachat")
"""Families whose templates have one call in an answer."""


class Writer:
    """Writes a text as far as a constraint lets it, the longest allowed token first."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._constraints = tokenizer, Constraints(tokenizer, len(tokenizer))
        self._marks = [mark for mark in tokenizer.all_special_tokens if mark]
        self._tokens = {tokenizer.decode([token]): token for token in range(len(tokenizer))}

    def bound(self, grammar: str) -> Constraint:
        constraint = self._constraints.of(SamplingParams(grammar=grammar))
        assert constraint is not None
        return constraint

    def may(self, constraint: Constraint, token: int) -> bool:
        return bool(constraint.allowed(torch.zeros(len(self._tokenizer)))[token] == 0)

    def begins(self, constraint: Constraint, text: str) -> bool:
        return self.may(constraint, self._tokenizer(text, add_special_tokens=False)["input_ids"][0])

    def write(self, constraint: Constraint, text: str) -> str:
        """What is refused of the text; "end" when all was taken and the answer may not end there."""
        stopped = False
        while text:
            most = min([40, *(at for mark in self._marks if (at := text.find(mark)) > 0)])
            tokens = [text[:length] for length in range(min(most, len(text)), 0, -1)]
            allowed = constraint.allowed(torch.zeros(len(self._tokenizer)))
            token = next((piece for piece in tokens if piece in self._tokens and allowed[self._tokens[piece]] == 0), "")
            parts = [self._tokens[token]] if token else self._tokenizer(text[0], add_special_tokens=False)["input_ids"]
            if not token and (text[0].isascii() or allowed[parts[0]] != 0):
                return text
            for part in parts:
                stopped = constraint.push(part)
            text = text[len(token) or 1 :]
        return "" if stopped or self.may(constraint, self._tokenizer.eos_token_id) else "end"


@pytest.fixture(scope="module")
def writer(tokenizer: Any) -> Writer:
    return Writer(tokenizer)


@pytest.fixture(scope="module")
def marked(tokenizer: Any) -> Writer:
    """A tokenizer in which every family's marks are special tokens."""
    marks = sorted({mark for known in FORMATS.values() for mark in known.marks} - {"functools"})
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": marks})
    return Writer(special)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["writer", "marked"])
def test_a_bound_answer_is_calls_and_nothing_else(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    writer: Writer = request.getfixturevalue(kind)
    grammar = FORMATS[name].grammar(Tools(TOOLS, "required"))
    assert not writer.begins(writer.bound(grammar), " Sure")
    calls = CALLS[-1:] if name in ONE_CALL else CALLS
    assert writer.write(writer.bound(grammar), WRITTEN[name](calls)) == ""
    assert "unknown" in writer.write(writer.bound(grammar), WRITTEN[name]([("unknown", {})]))


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_bound_to_one_tool_calls_it_once(name: str, writer: Writer) -> None:
    grammar = FORMATS[name].grammar(Tools(TOOLS, "run"))
    assert writer.write(writer.bound(grammar), WRITTEN[name](CALLS[1:2])) == ""
    assert writer.write(writer.bound(grammar), WRITTEN[name](CALLS[:1])) != ""
    assert writer.write(writer.bound(grammar), WRITTEN[name](CALLS[1:2] * 2)) != ""


def test_arguments_match_the_schema(writer: Writer) -> None:
    hermes, xml = (
        FORMATS["hermes"].grammar(Tools(TOOLS, "required")),
        FORMATS["qwen-xml"].grammar(Tools(TOOLS, "required")),
    )
    wrong: list[Calls] = [
        [("get_weather", {"city": 7})],
        [("get_weather", {"city": "Paris", "unit": "kelvin"})],
        [("get_weather", {"unit": "celsius"})],
        [("add", {"a": "one", "b": 2})],
        [("now", {"other": 1})],
    ]
    assert all(writer.write(writer.bound(hermes), WRITTEN["hermes"](calls)) for calls in wrong)
    assert all(writer.write(writer.bound(xml), WRITTEN["qwen-xml"](calls)) for calls in wrong[1:])


def test_reasoning_may_come_first(writer: Writer, marked: Writer) -> None:
    grammar = FORMATS["hermes"].grammar(Tools(TOOLS, "required"), "</think>")
    text = "Hm, I see.\n</think>\n\n" + WRITTEN["hermes"](CALLS[:2])
    assert writer.write(writer.bound(grammar), text) == ""
    assert marked.write(marked.bound(grammar), text) == ""
    harmony = FORMATS["harmony"].grammar(Tools(TOOLS, "required"))
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + WRITTEN["harmony"](CALLS[:1])
    assert marked.write(marked.bound(harmony), text) == ""


def test_references_in_a_schema_are_followed(writer: Writer) -> None:
    item = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    properties = {"x": {"$ref": "#/$defs/Item"}}
    keep = Tool("keep", "", {"type": "object", "properties": properties, "required": ["x"], "$defs": {"Item": item}})
    for name in WRITTEN:
        bound = writer.bound(FORMATS[name].grammar(Tools((keep, TOOLS[2]), "keep")))
        text = WRITTEN[name]([("keep", {"x": {"id": 7}})])
        assert writer.write(bound, text) == "", name
        calls = FORMATS[name].reader([keep]).push(text + "\n")[1]
        assert [json.loads(call.arguments) for call in calls] == [{"x": {"id": 7}}], name


def test_a_parameter_may_have_any_name() -> None:
    grammar = FORMATS["deepseek-v3.2"].grammar(Tools((tool("keep", ("HISTORY",), HISTORY=STRING),), "keep"))
    assert 'parameter name=\\"HISTORY\\" string=\\"true\\"' in grammar


def test_a_model_that_is_bound_calls_a_tool(model_dir: Any, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    constraints = Constraints(tokenizer, model.config.vocab_size)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the weather in Paris?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    for name in ("hermes", "mistral-v3", "pythonic"):
        bound = constraints.of(SamplingParams(grammar=FORMATS[name].grammar(Tools(TOOLS, "get_weather"))))
        text = _answer(model, tokenizer, list(asked), bound)
        words, calls = _read(FORMATS[name], text)
        assert (words, [call.name for call in calls]) == ("", ["get_weather"]), text
        assert "city" in json.loads(calls[0].arguments)


def _answer(model: Any, tokenizer: Any, tokens: list[int], bound: Constraint | None) -> str:
    assert bound is not None
    prompt, cache = len(tokens), None
    while len(tokens) - prompt < 80:
        with torch.inference_mode():
            said = model(
                torch.tensor([tokens[len(tokens) - 1 if cache else 0 :]]), past_key_values=cache, use_cache=True
            )
        cache = said.past_key_values
        token = int(bound.allowed(said.logits[0, -1]).argmax())
        if token == tokenizer.eos_token_id or (tokens.append(token) or bound.push(token)):
            break
    return str(tokenizer.decode(tokens[prompt:]))


def _read(known: CallFormat, text: str) -> tuple[str, list[Any]]:
    reader = known.reader(TOOLS)
    words, calls = reader.push(text)
    more, others = reader.finish()
    return words + more, calls + others


def test_texts_of_a_grammar_are_tokens_where_there_are_such() -> None:
    grammar = 'start: «<call>x\\n» "y" «…</call>» «…,</v>»\n'
    assert lark(grammar, {}) == (
        'start: "<call>x\\n" "y" until0 until1\n\n'
        'until0[suffix="</call>"]: /(?s:.*)/\nuntil1[suffix=",</v>"]: /(?s:.*)/\n'
    )
    assert lark(grammar, {"<call>": 7, "</call>": 8, "</v>": 9}) == (
        'start: <[7]> "x\\n" "y" /(?s:.*)/ <[8]> /(?s:.*),/ <[9]>\n\n'
    )


def test_a_grammar_that_cannot_be_followed_is_refused(writer: Writer) -> None:
    with pytest.raises(BadRequest, match="cannot be followed"):
        writer.bound("start: missing_rule")
