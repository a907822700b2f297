"""Families that write the arguments of their calls as text: in elements, as Python, or between braces of their own.

Each entry names the published template or parser that it was checked with: "llama.cpp" is its folder models/templates,
"vLLM" its examples/tool_chat_template_*.jinja or tests/tool_parsers.
"""

from llmsvc.formats.calls import gemma, grammar, json_forms, pythonic, xml_forms
from llmsvc.formats.calls.format import CallFormat
from llmsvc.formats.calls.grammar import framed, series
from llmsvc.formats.calls.json_families import HERMES_FORM

# Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5 (llama.cpp: Qwen3-Coder, Qwen3.5-4B, NVIDIA-Nemotron-3-Nano-30B-A3B-BF16).
QWEN_XML = CallFormat(
    "qwen-xml",
    ("<tool_call>", "</tool_call>"),
    (xml_forms.functions("<tool_call>"), HERMES_FORM, *json_forms.BARE),
    series(
        grammar.elements(
            "<tool_call>\n<function=NAME>\n",
            "<parameter=KEY>\n",
            "\n</parameter>\n",
            "</function>\n</tool_call>",
        ),
        between="\n",
    ),
    ("</function>", "</tool_call>"),
)

# llama.cpp: ByteDance-Seed-OSS.
SEED = CallFormat(
    "seed-oss",
    ("<seed:tool_call>", "</seed:tool_call>"),
    (xml_forms.functions("<seed:tool_call>"), *json_forms.BARE),
    series(
        grammar.elements(
            "<seed:tool_call>\n<function=NAME>\n", "<parameter=KEY>", "</parameter>\n", "</function>\n</seed:tool_call>"
        ),
        between="\n",
    ),
    ("</function>", "</seed:tool_call>"),
)

# llama.cpp: meetkai-functionary-medium-v3.1; the same is told by Meta for Llama 3.1's own tools.
FUNCTION_TAGS = CallFormat(
    "function-tags",
    ("<|python_tag|>",),
    (xml_forms.functions(""), *json_forms.BARE),
    series(framed("<function=NAME>", "</function>")),
    ("</function>",),
)

# MiniMax M2 (llama.cpp: MiniMax-M2).
MINIMAX = CallFormat(
    "minimax",
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    (xml_forms.INVOKE, *json_forms.BARE),
    series(
        grammar.elements('<invoke name="NAME">\n', '<parameter name="KEY">', "</parameter>\n", "</invoke>\n"),
        "<minimax:tool_call>\n",
        "",
        "</minimax:tool_call>",
    ),
    ("</invoke>", "</minimax:tool_call>"),
)


def _dsml(name: str, section: str) -> CallFormat:
    return CallFormat(
        name,
        ("｜DSML｜",),
        (xml_forms.DSML, *json_forms.BARE),
        series(
            grammar.elements(
                '<｜DSML｜invoke name="NAME">\n',
                '<｜DSML｜parameter name="KEY" string="IS">',
                "</｜DSML｜parameter>\n",
                "</｜DSML｜invoke>\n",
                ("true", "false"),
            ),
            f"<｜DSML｜{section}>\n",
            "",
            f"</｜DSML｜{section}>",
        ),
        ("</｜DSML｜invoke>", "</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"),
    )


# llama.cpp: deepseek-ai-DeepSeek-V3.2; deepseek-ai-DeepSeek-V4 names the section otherwise.
DEEPSEEK_32 = _dsml("deepseek-v3.2", "function_calls")
DEEPSEEK_4 = _dsml("deepseek-v4", "tool_calls")

_PAIR_MARKS = (
    *("<tool_calls>", "</tool_calls>", "<tool_call>", "</tool_call>", "<tool_sep>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)


def _pairs(name: str, line: str, head: str = "<tool_call>NAME", before: str = "", after: str = "") -> CallFormat:
    return CallFormat(
        name,
        _PAIR_MARKS,
        (xml_forms.PAIRS, HERMES_FORM, *json_forms.BARE),
        series(
            grammar.elements(
                head + line, f"<arg_key>KEY</arg_key>{line}<arg_value>", f"</arg_value>{line}", "</tool_call>"
            ),
            before,
            "\n",
            after,
        ),
        ("</tool_call>", "</tool_calls>"),
    )


# llama.cpp: GLM-4.6 writes each part in a line, GLM-4.7-Flash none; tencent-Hy3 (vLLM: test_hy_v3_tool_parser).
GLM_45 = _pairs("glm-4.5", "\n")
GLM_47 = _pairs("glm-4.7", "")
HUNYUAN_3 = _pairs("hunyuan-3", "\n", "<tool_call>NAME<tool_sep>", "<tool_calls>\n", "\n</tool_calls>")

# Llama 3.2 and 4, Gemma 3 (vLLM: llama3.2_pythonic, llama4_pythonic, gemma3_pythonic).
PYTHONIC = CallFormat(
    "pythonic",
    ("<|python_start|>", "<|python_end|>", "<|python_tag|>"),
    (
        pythonic.listed(r"<\|python_start\|>", "<|python_end|>"),
        pythonic.BARE,
        pythonic.CODE,
        pythonic.TAGGED,
        json_forms.WHOLE,
        *json_forms.ANY,
    ),
    series(grammar.pythonic, "[", ", ", "]"),
    ("<|python_end|>", "```"),
)

# vLLM: olmo3: a line for each call.
OLMO = CallFormat(
    "olmo-3",
    ("<function_calls>", "</function_calls>"),
    (pythonic.listed("<function_calls>", "</function_calls>"), *json_forms.BARE),
    series(grammar.pythonic, "<function_calls>\n", "\n", "\n</function_calls>"),
)

# llama.cpp: LFM2-8B-A1B, LFM2.5-8B-A1B; llama-cpp-lfm2 has JSON between the same marks.
LFM2 = CallFormat(
    "lfm2",
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    (
        pythonic.listed(r"<\|tool_call_start\|>", "<|tool_call_end|>"),
        json_forms.marked(r"<\|tool_call_start\|>", "<|tool_call_end|>"),
        *json_forms.BARE,
    ),
    series(grammar.pythonic, "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
)

# llama.cpp: google-gemma-4-31B-it. https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices.
GEMMA_4 = CallFormat(
    "gemma-4",
    ("<|tool_call>", "<tool_call|>", '<|"|>'),
    (gemma.braces(r"<\|tool_call>", "<tool_call|>", '<|"|>'), *json_forms.BARE),
    series(grammar.braces("<|tool_call>call:NAME", "<tool_call|>", '<|"|>')),
    ("<tool_call|>",),
)
FUNCTION_GEMMA = CallFormat(
    "function-gemma",
    ("<start_function_call>", "<end_function_call>", "<escape>"),
    (gemma.braces("<start_function_call>", "<end_function_call>", "<escape>"), *json_forms.BARE),
    series(grammar.braces("<start_function_call>call:NAME", "<end_function_call>", "<escape>")),
    ("<end_function_call>",),
)
