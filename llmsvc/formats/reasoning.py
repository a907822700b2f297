"""How families of models mark their reasoning: one table, by the marks in their chat templates."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ReasoningFormat:
    """The marks of one family.

    ``opening``: what stands before reasoning, with its white space; ``closing``: what ends it and
    lets the answer begin; ``answer``: what an answer begins with that has no reasoning. ``opens``,
    ``closes``: the bare marks. ``wraps``: pairs around the answer, which are not shown; ``hidden``:
    marks within reasoning, which are not shown either. ``label``: what follows the opening mark and
    is no reasoning. ``interrupts``: what ends reasoning and is itself a call of a tool.
    ``special``: whether the marks are special tokens, which never stand for themselves: they count
    anywhere, where others count only at an answer's beginning.
    """

    name: str
    opening: str
    closing: str
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    answer: str = ""
    wraps: tuple[tuple[str, str], ...] = ()
    hidden: tuple[str, ...] = ()
    label: str = ""
    interrupts: tuple[str, ...] = ()
    special: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them: those that are special tokens must be kept when an answer is decoded."""
        wraps = (mark for pair in self.wraps for mark in pair)
        return (*self.opens, *self.closes, *wraps, *self.hidden, *self.interrupts)

    @property
    def begins(self) -> tuple[str, ...]:
        """What reasoning at the beginning of an answer begins with, and nothing else does."""
        return (self.opening.strip(),) if self.name == "harmony" else self.opens


def _pair(name: str, opens: str, closes: str, *, compact: bool = False, special: bool = False) -> ReasoningFormat:
    """Two marks, on lines of their own unless ``compact``."""
    opening, closing = (opens, closes) if compact else (f"{opens}\n", f"\n{closes}\n\n")
    return ReasoningFormat(name, opening, closing, (opens,), (closes,), special=special)


THINK = _pair("think", "<think>", "</think>")
"""Qwen, DeepSeek R1, SmolLM3, MiniMax M2, Nemotron, OLMo 3, Phi-4, EXAONE 4 and most others. Also
for templates that say nothing of reasoning: their models may reason all the same."""

HARMONY = ReasoningFormat(
    "harmony",
    opening="<|channel|>analysis<|message|>",
    closing="<|end|><|start|>assistant<|channel|>final<|message|>",
    opens=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"),
    closes=("<|end|>", "<|call|>", "<|return|>"),
    answer="<|channel|>final<|message|>",
    special=True,
)
"""gpt-oss: read by ``formats.harmony``."""

_GEMMA = ReasoningFormat(
    "gemma",
    opening="<|channel>thought\n",
    closing="<channel|>",
    opens=("<|channel>",),
    closes=("<channel|>",),
    label="thought\n",
    interrupts=("<|tool_call>",),
    special=True,
)
_SEED = replace(
    _pair("seed", "<seed:think>", "</seed:think>", special=True),
    hidden=("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"),
)
_COMMAND = replace(
    _pair("command", "<|START_THINKING|>", "<|END_THINKING|>", compact=True, special=True),
    wraps=(("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|START_TEXT|>", "<|END_TEXT|>")),
    interrupts=("<|START_ACTION|>",),
)
_SOLAR = ReasoningFormat(
    "solar",
    opening="<|think|>",
    closing="<|end|><|begin|>assistant",
    opens=("<|think|>",),
    closes=("<|end|>",),
    answer="<|content|>",
    wraps=(("<|begin|>assistant<|content|>", "<|end|>"), ("<|content|>", "<|end|>")),
    special=True,
)
_APERTUS = _pair("apertus", "<|inner_prefix|>", "<|inner_suffix|>", compact=True, special=True)
_APRIEL = ReasoningFormat(
    "apriel",
    opening="Here are my reasoning steps:\n",
    closing="\n[BEGIN FINAL RESPONSE]\n",
    opens=("Here are my reasoning steps:",),
    closes=("[BEGIN FINAL RESPONSE]",),
    wraps=(("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),),
)
_GRANITE = ReasoningFormat(
    "granite",
    opening="Here is my thought process:\n\n",
    closing="\n\nHere is my response:\n\n",
    opens=("Here is my thought process:", "Here's my thought process:"),
    closes=("Here is my response:", "Here's my response:"),
)
_RESPONSE = replace(THINK, name="response", wraps=(("<response>", "</response>"),))
_HUNYUAN = replace(
    THINK,
    name="hunyuan",
    closing="\n</think>\n",
    answer="<answer>\n",
    wraps=(("<answer>", "</answer>"),),
)
_COMPACT = _pair("compact", "<think>", "</think>", compact=True)
_KIMI = replace(_COMPACT, name="kimi", interrupts=("<|tool_calls_section_begin|>",))

_FORMATS: tuple[tuple[tuple[str, ...], ReasoningFormat], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY),
    (("<|channel>",), _GEMMA),  # Gemma 4
    (("[THINK]",), _pair("mistral", "[THINK]", "[/THINK]", compact=True, special=True)),
    (("<seed:think>",), _SEED),
    (("<|START_THINKING|>", "<|START_TEXT|>"), replace(_COMMAND, answer="<|START_TEXT|>")),
    (("<|START_THINKING|>",), replace(_COMMAND, answer="<|START_RESPONSE|>")),
    (("<|think|>", "<|content|>"), _SOLAR),
    (("<|inner_prefix|>",), _APERTUS),
    (("<mm:think>",), _pair("minimax", "<mm:think>", "</mm:think>")),  # MiniMax M3
    (("<longcat_think>",), _pair("longcat", "<longcat_think>", "</longcat_think>")),
    (("</thought>",), _pair("exaone", "<thought>", "</thought>")),  # EXAONE Deep
    (("Here are my reasoning steps:",), _APRIEL),  # Apriel 1.6
    (("[BEGIN FINAL RESPONSE]",), _APRIEL),  # Apriel 1.5
    (("Here is my thought process:",), _GRANITE),  # Granite 3.2
    (("<think>", "<response></response>"), _RESPONSE),  # Granite 3.3
    (("<think>", "<response>\\n"), _RESPONSE),  # Ernie 4.5
    (("<think>", "<answer>"), _HUNYUAN),
    (("<think>\\n", "<｜Assistant｜>"), THINK),  # DeepSeek R1
    (("</think>", "<｜Assistant｜>"), _COMPACT),  # DeepSeek V3.1
    (("<think>", "<|tool_calls_section_begin|>"), _KIMI),
    (("<think>", "[gMASK]"), replace(THINK, name="glm", opening="\n<think>", closing="</think>\n")),
)
"""The first row whose texts all stand in a template is its format. Checked with the published
templates (llama.cpp's folder models/templates); Command A, Ernie, Hunyuan and LongCat with vLLM's
parsers, gpt-oss with https://github.com/openai/harmony, docs/format.md."""


def reasoning_format_of(template: str) -> ReasoningFormat:
    """By the template's own marks."""
    for signs, format_ in _FORMATS:
        if all(sign in template for sign in signs):
            return format_
    return THINK
