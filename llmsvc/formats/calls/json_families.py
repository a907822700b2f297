"""Families that write their calls as JSON.

Each entry names the published template or parser that it was checked with: "llama.cpp" is its folder models/templates,
"vLLM" its examples/tool_chat_template_*.jinja or tests/tool_parsers.
"""

from llmsvc.formats.calls import grammar, json_forms, pythonic, xml_forms
from llmsvc.formats.calls.format import CallFormat
from llmsvc.formats.calls.grammar import Writer, framed, series
from llmsvc.formats.calls.values import short_id


def _objects(before: str, between: str, after: str, most: int = grammar.MOST_CALLS) -> Writer:
    return series(framed('{"name": "NAME", "arguments": ', "}"), before, between, after, most)


HERMES_FORM = json_forms.marked("<tool_call>", "</tool_call>")
HERMES_WRITER = series(framed('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"), between="\n")

# Qwen 2.5 and 3, Hermes, Granite 4, Ernie 4.5, SmolLM3, Reka (llama.cpp: Qwen-Qwen3-0.6B, NousResearch-Hermes-3-…,
# ibm-granite-granite-4.0; vLLM: test_ernie45_moe_tool_parser).
HERMES = CallFormat("hermes", ("<tool_call>", "</tool_call>"), (HERMES_FORM, *json_forms.ANY), HERMES_WRITER)

_DEEPSEEK_MARKS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_DEEPSEEK_FORMS = (
    json_forms.headed(
        r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>NAMES)"
        r"(?:<｜tool▁sep｜>|\s*```(?:json)?)"
    ),
    *json_forms.BARE,
)
_DEEPSEEK_CLOSERS = ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")

# V3, R1 and its distilled models (vLLM: deepseekv3; llama.cpp: llama-cpp-deepseek-r1).
DEEPSEEK_3 = CallFormat(
    "deepseek-v3",
    _DEEPSEEK_MARKS,
    _DEEPSEEK_FORMS,
    series(
        framed("<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>"),
        "<｜tool▁calls▁begin｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
    _DEEPSEEK_CLOSERS,
)

# llama.cpp: deepseek-ai-DeepSeek-V3.1.
DEEPSEEK_31 = CallFormat(
    "deepseek-v3.1",
    _DEEPSEEK_MARKS,
    _DEEPSEEK_FORMS,
    series(
        framed("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    _DEEPSEEK_CLOSERS,
)

_KIMI_MARKS = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)

# llama.cpp: Kimi-K2-Instruct, Kimi-K2-Thinking. The id counts a conversation's calls, and the template writes it again.
KIMI = CallFormat(
    "kimi-k2",
    _KIMI_MARKS,
    (
        json_forms.headed(
            r"(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>NAMES):\d+)"
            r"\s*<\|tool_call_argument_begin\|>",
            keep_id=True,
        ),
        *json_forms.BARE,
    ),
    series(
        grammar.numbered(
            "<|tool_call_begin|>functions.NAME:", "[0-9]{1,3}", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
        ),
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
    ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
)


# gpt-oss: its channels are read elsewhere (llama.cpp: openai-gpt-oss-120b; https://cookbook.openai.com: harmony).
HARMONY = CallFormat(
    "harmony",
    ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
    (
        json_forms.headed(
            r"(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)?\s*to=(?:functions\.)?(?P<name>NAMES)"
            r"(?:\s*<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>"
        ),
    ),
    lambda rules, tools: " ".join(
        (
            rules.rule(
                f"{grammar.text('<|channel|>analysis<|message|>')} {grammar.until('<|end|>')}"
                f" {grammar.text('<|start|>assistant')}"
            )
            + "?",
            series(framed("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", "<|call|>"), most=1)(
                rules, tools
            ),
        )
    ),
    ("<|call|>", "<|end|>", "<|return|>"),
)

# llama.cpp: meta-llama-Llama-3.1-8B-Instruct, -3.2-, -3.3-: one call in an answer; built-in tools behind a mark.
LLAMA_JSON = CallFormat(
    "llama-json",
    ("<|python_tag|>",),
    (
        json_forms.marked(r"<\|python_tag\|>"),
        pythonic.TAGGED,
        json_forms.WHOLE,
        xml_forms.functions(""),
        pythonic.BARE,
        *json_forms.ANY,
    ),
    series(framed('{"name": "NAME", "parameters": ', "}"), most=1),
    (";", "```", "</function>"),
)

_MISTRAL_HEAD = r"\[TOOL_CALLS\]\s*(?P<name>NAMES)\s*(?:\[CALL_ID\](?P<id>[A-Za-z0-9]{9})?\s*)?(?:\[ARGS\])?"
_MISTRAL_FORMS = (
    json_forms.headed(_MISTRAL_HEAD, keep_id=True),
    json_forms.marked(r"\[TOOL_CALLS\]"),
    *json_forms.ANY,
)


def _mistral(name: str, writer: Writer) -> CallFormat:
    marks = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    return CallFormat(name, marks, _MISTRAL_FORMS, writer, ("[/TOOL_CALLS]", "```"), short_id)


# vLLM: mistral (7B v0.3); llama.cpp: mistralai-Ministral-3-14B-…, unsloth-mistral-Devstral-Small-2507, and
# Mistral-Small-3.2-24B-…, which writes ids.
MISTRAL = _mistral("mistral-v3", _objects("[TOOL_CALLS][", ", ", "]"))
MISTRAL_11 = _mistral("mistral-v11", series(framed("[TOOL_CALLS]NAME[ARGS]", "")))
MISTRAL_IDS = _mistral(
    "mistral-ids", series(grammar.numbered("[TOOL_CALLS]NAME[CALL_ID]", "[a-zA-Z0-9]{9}", "[ARGS]", ""))
)


def _list(name: str, opening: str, closing: str = "", between: str = ", ") -> CallFormat:
    """A JSON list of objects behind a mark."""
    marks = (opening, closing) if closing else (opening,)
    expression = "".join(f"\\{sign}" if sign in "|[]" else sign for sign in opening)
    forms = (json_forms.marked(expression, closing), *json_forms.ANY)
    return CallFormat(name, marks, forms, _objects(f"{opening}[", between, f"]{closing}"), (*marks[1:], "```"))


HUNYUAN = _list("hunyuan", "<tool_calls>", "</tool_calls>")  # vLLM: hunyuan_a13b; llama.cpp: Apriel-1.6-15b-Thinker
NEMOTRON = _list("nemotron", "<TOOLCALL>", "</TOOLCALL>")  # llama.cpp: NVIDIA-Nemotron-Nano-v2
GRANITE = _list("granite", "<|tool_call|>")  # llama.cpp: ibm-granite-granite-3.3-2B-Instruct
PHI = _list("phi-4-mini", "<|tool_call|>", "<|/tool_call|>")  # llama.cpp: llama-cpp-microsoft-Phi-4-mini-instruct
FUNCTOOLS = _list("functools", "functools")  # vLLM: phi4_mini; llama.cpp: fireworks-ai-llama-3-firefunction-v2

# vLLM: xlam_llama, xlam_qwen: the whole answer is a list.
XLAM = CallFormat("json-list", (), (json_forms.WHOLE, HERMES_FORM, *json_forms.ANY), _objects("[", ", ", "]"), ("```",))

# llama.cpp: CohereForAI-c4ai-command-r7b-12-2024-tool_use; vLLM: test_cohere_command_tool_parser.
COMMAND = CallFormat(
    "command",
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    (json_forms.marked(r"<\|START_ACTION\|>", "<|END_ACTION|>"), *json_forms.ANY),
    series(
        grammar.numbered('{"tool_call_id": "', "[0-9]{1,2}", '", "tool_name": "NAME", "parameters": ', "}"),
        "<|START_ACTION|>[\n    ",
        ",\n    ",
        "\n]<|END_ACTION|>",
    ),
    ("<|END_ACTION|>", "```"),
)

# llama.cpp: Apertus-8B-Instruct.
APERTUS = CallFormat(
    "apertus",
    ("<|tools_prefix|>", "<|tools_suffix|>"),
    (
        json_forms.marked(r"<\|tools_prefix\|>", "<|tools_suffix|>", json_forms.named_objects),
        *json_forms.BARE,
    ),
    series(framed('{"NAME": ', "}"), "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
)

# Granite 20B function calling (vLLM: granite_20b_fc), GigaChat 3 (llama.cpp: GigaChat3.1-10B-A1.8B).
FUNCTION_CALL = CallFormat(
    "function-call",
    ("<function_call>", "<|function_call|>"),
    (json_forms.marked(r"<\|?function_call\|?>"), *json_forms.BARE),
    series(framed('<function_call> {"name": "NAME", "arguments": ', "}"), between="\n"),
)
GIGACHAT = CallFormat(
    "gigachat",
    ("<|function_call|>",),
    FUNCTION_CALL.forms,
    series(framed('<|function_call|>{"name": "NAME", "arguments": ', "}"), most=1),
)
