"""Prompts by chat templates with the habits of published ones: one policy for what they refuse and what they read."""

import functools
import json
from typing import Any

import pytest
import small

from llmsvc.errors import BadRequest
from llmsvc.formats.reader import AnswerReader
from llmsvc.formats.templates import Thinking, can_think, encode, plain_stops, render
from llmsvc.formats.tools import Tool
from llmsvc.models.remote import Estimate

Row = dict[str, Any]
TOOL = Tool("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string", "description": "A"}}})


def row(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def text(template: Any, *rows: Row, **more: Any) -> str:
    return render(small.tokenizer(template), rows, **more).text


def called(id_: str, city: str) -> Row:
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return {"id": id_, "type": "function", "function": function}


TALK = [row("system", "Be brief."), row("user", "Hi"), row("assistant", "Hello"), row("user", "And?")]
CALLED = [
    row("user", "Hi"),
    row("assistant", "", reasoning="I look.", tool_calls=[called("call_1", "Rome"), called("call_2", "Oslo")]),
    row("tool", "sun", tool_call_id="call_1"),
    row("tool", "snow", tool_call_id="call_2"),
]


def test_the_embedded_model_reads_what_its_template_writes(tokenizer: Any) -> None:
    for rows in (TALK, TALK[1:], [row("user", "é\n\n ")], [*TALK[:2], *TALK[3:]]):
        plain = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        rendered = render(tokenizer, rows)
        assert (rendered.text, rendered.opened, rendered.continued) == (plain, False, False)
        assert list(encode(tokenizer, rendered)) == tokenizer(plain, add_special_tokens=False)["input_ids"]
    assert render(tokenizer, TALK, answer="Well, ").text.endswith("assistant\nWell, ")


def test_a_system_prompt_that_has_no_role() -> None:
    merged = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello"
    assert merged in text(small.GEMMA_2, *TALK)
    assert "[user]Be brief.\n\nHi[assistant]Hello" in text(small.DEAF, *TALK)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text(small.CHATML, *TALK)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text(small.CHATML, row("developer", "Be brief."), *TALK[1:])


def test_a_system_message_further_down() -> None:
    late = [*TALK, row("system", "In French."), row("user", "Go on.")]
    assert "<|im_start|>system\nBe brief.\n\nIn French.<|im_end|>" in text(small.QWEN_OPEN, *late)
    assert "Be brief.\n\nIn French.\n\nHi" in text(small.GEMMA_2, *late)
    assert "And?<|im_end|>\n<|im_start|>system\nIn French." in text(small.CHATML, *late)


def test_messages_of_one_role_in_a_row() -> None:
    twice = [row("user", "One"), row("user", "Two"), row("assistant", "A"), row("assistant", "B"), row("user", "C")]
    rendered = text(small.GEMMA_2, *twice)
    assert "user\nOne\n\nTwo<end_of_turn>" in rendered
    assert "model\nA\n\nB<end_of_turn>" in rendered
    assert "One<|im_end|>\n<|im_start|>user\nTwo" in text(small.CHATML, *twice)


def test_what_a_template_refuses_is_said_in_words() -> None:
    with pytest.raises(BadRequest, match=r"cannot take these messages.*Conversation roles must alternate.*or choose"):
        text(small.GEMMA_2, row("assistant", "Hello"), row("user", "Hi"))
    with pytest.raises(BadRequest, match=r"cannot take these messages\. Begin with") as caught:
        text("{{ messages[0].content.nothing.there }}", row("user", "Hi"))
    assert "undefined" not in str(caught.value).lower()
    with pytest.raises(BadRequest, match="Send at least one"):
        text(small.CHATML)


def test_contents_in_parts() -> None:
    assert text(small.PARTS, *TALK) == "<|system|>Be brief.<|user|>Hi<|assistant|>Hello<|user|>And?<|assistant|>"


def test_a_base_model_reads_its_bos() -> None:
    plain = "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: And?\n\nAssistant:"
    assert text(None, *TALK) == text("", *TALK) == plain
    tokenizer = small.tokenizer(None, bos=True)
    rendered = render(tokenizer, TALK)
    assert rendered.text == f"<bos>{plain}"
    assert encode(tokenizer, rendered)[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in encode(tokenizer, rendered)[1:]
    assert "\nUser:" in plain_stops()
    assert render(tokenizer, TALK, answer=" It").text.endswith("Assistant: It")


def test_templates_with_bos_have_one() -> None:
    tokenizer = small.tokenizer("{{ bos_token }}" + small.CHATML, bos=True)
    assert encode(tokenizer, render(tokenizer, TALK)).count(tokenizer.bos_token_id) == 1


def test_models_on_other_servers() -> None:
    tokenizer = Estimate()
    rendered = render(tokenizer, TALK, tools=[TOOL], answer="Well")
    assert "# Tools" in rendered.text
    assert rendered.text.endswith("<|start|>user\nAnd?<|end|>\nWell")
    assert len(encode(tokenizer, rendered)) > 10
    assert can_think(tokenizer) == ()


def test_several_templates_of_one_model() -> None:
    both = {"default": small.CHATML, "tool_use": small.QWEN}
    assert "<tools>" not in text(both, *TALK)
    assert "<tools>" in text(both, *TALK, tools=[TOOL])
    with pytest.raises(BadRequest, match="several chat templates"):
        text({"one": small.CHATML, "other": small.QWEN}, *TALK)
    assert can_think(small.tokenizer({"one": small.CHATML, "other": small.QWEN})) == ()


# Tools


def test_tools_and_calls_as_the_template_has_them() -> None:
    rendered = text(small.QWEN, *CALLED, tools=[TOOL])
    assert "<tools>" in rendered
    assert "".join(f'<tool_call>weather {{"city": "{city}"}}</tool_call>' for city in ("Rome", "Oslo")) in rendered
    assert '<｜tool▁sep｜>{"city": "Rome"}' in text(small.DEEPSEEK, *CALLED, tools=[TOOL])


def test_tools_as_text_where_the_template_has_none() -> None:
    rendered = text(small.CHATML, *CALLED, tools=[TOOL])
    assert "<|im_start|>system\n# Tools" in rendered
    assert "Rome" in rendered
    assert "<tool_response>\nsun\n</tool_response>" in rendered
    assert "<start_of_turn>user\n# Tools" in text(small.GEMMA_2, *CALLED, tools=[TOOL])


def test_calls_as_text_where_the_template_has_tools_alone() -> None:
    rendered = text(small.TOLD_ONLY, *CALLED, tools=[TOOL])
    assert rendered.startswith("<|tools|>[{")
    assert "# Tools" not in rendered
    assert "Rome" in rendered
    assert "<tool_response>\nsnow\n</tool_response>" in rendered


def test_calls_are_read_in_the_words_they_were_told_of() -> None:
    template = small.DEEPSEEK.replace("{% if tools %}{{ tools | tojson }}{% endif %}", "")
    template += "{# <｜tool▁calls▁begin｜> #}"
    family = render(small.tokenizer(template), TALK, tools=[TOOL]).family
    for answer in (
        'Well.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        'Well.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ):
        reader = AnswerReader(family, [TOOL])
        said = [reader.push(answer), reader.finish()]
        assert "".join(one.text for one in said).strip() == "Well."
        assert [call.arguments for one in said for call in one.calls] == ['{"city": "Rome"}']


def test_ids_of_calls_that_are_short() -> None:
    rendered = text(small.MISTRAL, *CALLED, tools=[TOOL])
    ids = [part[:9] for part in rendered.split("[CALL_ID]")[1:]]
    assert len(set(ids)) == 2
    for id_, said in zip(ids, ("sun", "snow"), strict=True):
        assert f"[TOOL_RESULTS]{id_} {said}[/TOOL_RESULTS]" in rendered
    kept = [{**CALLED[1], "tool_calls": [called("abc123XYZ", "Rome")]}, row("tool", "sun", tool_call_id="abc123XYZ")]
    assert "[CALL_ID]abc123XYZ[ARGS]" in text(small.MISTRAL, CALLED[0], *kept, tools=[TOOL])


def test_a_template_with_one_call_in_a_message() -> None:
    said = {**CALLED[1], "content": "A moment."}
    rendered = text(small.HARMONY, CALLED[0], said, *CALLED[2:], tools=[TOOL])
    assert "analysis<|message|>I look.\n\nA moment.<|end|>" in rendered
    rome, oslo = rendered.index('{"city": "Rome"}'), rendered.index('{"city": "Oslo"}')
    assert rome < rendered.index('"sun"') < oslo < rendered.index('"snow"')


# Thinking


def test_modes_of_thinking() -> None:
    known = {
        small.CHATML: (),
        small.QWEN: ("off", "on"),
        small.QWEN_OPEN: ("off", "on"),
        small.GEMMA_4: ("off", "on"),
        small.DEEPSEEK: ("off", "on"),
        small.SEED: ("off", "on"),
        small.NEMOTRON: ("off", "on"),
        small.HARMONY: ("low", "medium", "high"),
        small.MISTRAL: ("off", "high"),
    }
    for template, modes in known.items():
        assert can_think(small.tokenizer(template)) == modes


@pytest.mark.parametrize(
    ("template", "mode", "end", "opened"),
    [
        (small.QWEN, "", "<|im_start|>assistant\n", False),
        (small.QWEN, "on", "<|im_start|>assistant\n", False),
        (small.QWEN, "off", "assistant\n<think>\n\n</think>\n\n", False),
        (small.QWEN_OPEN, "", "assistant\n<think>\n", True),
        (small.QWEN_OPEN, "off", "<think>\n\n</think>\n\n", False),
        (small.GEMMA_4, "on", "<|turn>model\n", False),
        (small.GEMMA_4, "off", "<|channel>thought\n<channel|>", False),
        (small.DEEPSEEK, "on", "<｜Assistant｜><think>", True),
        (small.DEEPSEEK, "off", "<｜Assistant｜></think>", False),
        (small.SEED, "off", "<seed:think><seed:cot_budget_reflect>", True),
        (small.NEMOTRON, "on", "<think>\n", True),
        (small.NEMOTRON, "off", "<think></think>", False),
    ],
)
def test_thinking_is_what_the_template_reads(template: str, mode: str, end: str, opened: bool) -> None:
    rendered = render(small.tokenizer(template), TALK, thinking=Thinking(mode))
    assert rendered.text.endswith(end)
    assert rendered.opened is opened
    assert "/no_think" not in rendered.text


def test_thinking_in_words_of_the_system_prompt() -> None:
    rendered = text(small.NEMOTRON, row("user", "Hi"), thinking=Thinking("off"))
    assert rendered == "<SPECIAL_10>System\n\n<SPECIAL_11>user\nHi\n<SPECIAL_11>Assistant\n<think></think>"
    assert "System\nBe brief.\n" in text(small.NEMOTRON, *TALK, thinking=Thinking("off"))


def test_effort_and_budget() -> None:
    assert "Reasoning: high<|end|>" in text(small.HARMONY, *TALK, thinking=Thinking("high"))
    assert "Reasoning: medium<|end|>" in text(small.HARMONY, *TALK)
    assert '{"reasoning_effort": "none"}' in text(small.MISTRAL, *TALK, thinking=Thinking("off"))
    assert "within 512 tokens" in text(small.SEED, *TALK, thinking=Thinking("on", 512))
    assert "within" not in text(small.SEED, *TALK, thinking=Thinking("on"))
    assert text(small.QWEN, *TALK, thinking=Thinking("on", 512)) == text(small.QWEN, *TALK)


def test_a_mode_that_the_model_has_not() -> None:
    with pytest.raises(BadRequest, match=r'no thinking mode "banana"\. Choose one of: low, medium, high'):
        text(small.HARMONY, *TALK, thinking=Thinking("banana"))
    with pytest.raises(BadRequest, match="cannot be told how to think"):
        text(small.CHATML, *TALK, thinking=Thinking("on"))


def test_earlier_reasoning_is_kept_or_not_as_the_template_wants() -> None:
    thought = [row("user", "Hi"), row("assistant", "Hello", reasoning="A greeting."), row("user", "And?")]
    for template in (small.CHATML, small.QWEN, small.GEMMA_2, small.HARMONY):
        assert "A greeting." not in text(template, *thought)
    assert "[THINK]A greeting.[/THINK]Hello" in text(small.MISTRAL, *thought)
    assert "<think>\nI look.\n</think>\n\n<tool_call>weather" in text(small.QWEN, *CALLED, tools=[TOOL])


# What a template is given, and answers that go on


def test_variables_reach_the_template() -> None:
    assert text(small.QWEN, *TALK, variables={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")
    mixed = text(small.QWEN, *TALK, thinking=Thinking("off"), variables={"enable_thinking": True})
    assert mixed == text(small.QWEN, *TALK)


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": []},
        {"conversations": []},
        {"tools": []},
        {"chat_template": "x"},
        {"add_generation_prompt": False},
        {"tokenize": True},
        {"a b": 1},
        {"x": {1, 2}},
        {"x": float("nan")},
        {"x": "y" * 20_000},
        {f"x{number}": 1 for number in range(100)},
        {"x": functools.reduce(lambda inner, _: [inner], range(5_000), [])},
    ],
)
def test_variables_that_are_refused(variables: Row) -> None:
    with pytest.raises(BadRequest, match="chat_template_kwargs"):
        text(small.QWEN, *TALK, variables=variables)


@pytest.mark.parametrize(
    ("template", "mode", "begun", "both"),
    [
        (small.QWEN, "", "<think>\nHm", "<think>\nHm\n</think>\n\nWell"),
        (small.QWEN_OPEN, "", "assistant\n<think>\nHm", "assistant\n<think>\nHm\n</think>\n\nWell"),
        (small.QWEN_OPEN, "off", "assistant\n<think>\nHm", "<think>\n\n</think>\n\nWell"),
        (small.DEEPSEEK, "on", "<think>Hm", "<think>Hm</think>Well"),
        (small.DEEPSEEK, "off", "<｜Assistant｜><think>Hm", "<｜Assistant｜></think>Well"),
        (small.GEMMA_4, "on", "<|channel>thought\nHm", "<|channel>thought\nHm<channel|>Well"),
        (small.GEMMA_4, "off", "model\n<|channel>thought\nHm", "<|channel>thought\n<channel|>Well"),
        (small.MISTRAL, "", "[/INST][THINK]Hm", "[/INST][THINK]Hm[/THINK]Well"),
        (
            small.HARMONY,
            "",
            "<|start|>assistant<|channel|>analysis<|message|>Hm",
            "<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Well",
        ),
    ],
)
def test_an_answer_that_goes_on(template: str, mode: str, begun: str, both: str) -> None:
    tokenizer, thinking = small.tokenizer(template), Thinking(mode)

    def ending(**more: str) -> tuple[str, bool, bool]:
        rendered = render(tokenizer, TALK, thinking=thinking, **more)
        return rendered.text, rendered.opened, rendered.continued

    thought, opened, continued = ending(reasoning="Hm")
    assert thought.endswith(begun)
    assert (opened, continued) == (True, True)
    said, opened, continued = ending(reasoning="Hm", answer="Well")
    assert said.endswith(both)
    assert (opened, continued) == (False, True)


def test_what_is_nested_too_deep_for_a_template() -> None:
    deep = functools.reduce(lambda inner, _: [inner], range(600), [])
    with pytest.raises(BadRequest):
        text(small.QWEN, *TALK, variables={"x": deep})


def test_an_answer_without_reasoning_goes_on() -> None:
    assert text(small.QWEN, *TALK, answer="Well").endswith("assistant\nWell")
    assert text(small.QWEN_OPEN, *TALK, answer="Well").endswith("<think>\n\n</think>\n\nWell")
    assert text(small.HARMONY, *TALK, answer="Well").endswith("assistant<|channel|>final<|message|>Well")
