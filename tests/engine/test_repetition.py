"""Answers that repeat themselves for ever are stopped; whatever somebody may have asked for is not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.engine.repetition import Loops

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    *sorted((ROOT / "llmsvc").rglob("*.py")),
    *sorted((ROOT / "llmsvc").rglob("*.cpp")),
    *sorted((ROOT / "tests" / "engine").rglob("*.py")),
    *sorted((ROOT / "assets").glob("*.[cj]s*")),
    *(ROOT / name for name in ("app.py", "README.md", "LICENSE", "Makefile", "pyproject.toml", "requirements.txt")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bench").glob("*.jsonl")),
]

LOOPS = {
    "a word": ("It is very", " very"),
    "short": ("L'Étoile, la Marseillaise, la femme", ", la femme au martyre"),
    "a sentence": (
        "The refrain of a song is a musical motif that repeats itself. It's",
        " a musical device that adds depth and complexity to a song. It's",
    ),
    "a verse": (
        "In the depths of the ocean, where shadows play,\n",
        "The sea, aria, aria of the sea,\nAbe aria, aria of the sea,\nAbe aria, aria of the sea.\n\n",
    ),
    "a paragraph": (
        "I'm so glad you're enjoying the service",
        ".\n\nI'm happy to help with any kind of project or task you need help with. Whether it's a project, a "
        "problem, or just a request for help, I'm here to assist you",
    ),
    "sentences with loops in them": (
        "Once there was a young dragon",
        " who was born to a dragon named Lai-Ling.\n\nAi-Ling was a young dragon who was born to a dragon named "
        "Lai-Ling. Ai-Ling was a young dragon who was born to a dragon named Lai-Ling. Ai-Ling was a young dragon",
    ),
    "other letters": ("北京是", "中国的首都，首都是北京，"),
}
"""What the embedded model said at temperature 0, and then again and again; some are made up."""

MEANT = {
    "a rule": "| a | b |\n|" + "-" * 900 + "|" + "-" * 900 + "|\n",
    "spaces": "def f():\n" + " " * 1500 + "return 1",
    "blank lines": "\n" * 300 + "end",
    "zeros": "[" + ", ".join(["0"] * 300) + "]",
    "floats": "[" + ", ".join(["0.0"] * 200) + "]",
    "nulls": '{"values": [' + ", ".join(["null"] * 300) + "]}",
    "yes and no": "[" + ", ".join(["true", "false"] * 150) + "]",
    "a matrix": "\n".join(["0 0 0 0 0 0 0 0 0 0"] * 40),
    "CSV of zeros": "\n".join([",".join(["0"] * 8)] * 50),
    "empty cells": "<table>" + "<tr><td></td><td></td></tr>\n" * 40 + "</table>",
    "empty columns": "| | | |\n" * 100,
    "a board": ("# . # . # . # .\n. # . # . # . #\n" * 4 + "\n") * 3,
    "ASCII art": "\n".join("/\\" * n + "  " * (40 - n) + "|" for n in range(40)),
    "bytes": "\\x00" * 200,
    "base64": "AAAA" * 300,
    "a list of numbers": ", ".join(map(str, range(1000))),
    "a list with the same words": "\n".join(f"{n}. This is item number {n} of the list." for n in range(100)),
    "rows": "\n".join(f'{{"id": {n}, "name": "user{n}", "active": true}}' for n in range(100)),
    "said a hundred times": "hello " * 100,
    "laughter": "ha" * 100,
    "a song": "".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down and pass it around.\n\n"
        for n in range(99, 60, -1)
    ),
    "refrains": "".join(
        f"{verse}\nRow, row, row your boat, gently down the stream.\nMerrily, merrily, merrily, merrily!\n"
        for verse in ["The sun comes up.", "The rain comes down.", "The wind blows.", "The night falls."] * 4
    ),
    "a poem said three times": "The woods are lovely, dark and deep,\nBut I have promises to keep,\n" * 3,
    "a text given back three times": "A cat sat on the mat and looked at the moon until the moon was gone. " * 12,
}


def stopped(tokens: Sequence[int], text_of: Callable[[list[int]], str]) -> int:
    """After how many tokens; 0 for never."""
    loops = Loops(text_of)
    return next((number for number, token in enumerate(tokens, 1) if loops.push(token)), 0)


def test_no_text_of_this_repository_is_a_loop(tokenizer: Any) -> None:
    assert len(TEXTS) > 90
    for path in TEXTS:
        tokens = tokenizer(path.read_text(errors="replace"), add_special_tokens=False).input_ids
        assert stopped(tokens, tokenizer.decode) == 0, path


@pytest.mark.parametrize("name", MEANT)
def test_what_may_be_meant_goes_on(tokenizer: Any, name: str) -> None:
    tokens = tokenizer(MEANT[name], add_special_tokens=False).input_ids
    assert stopped(tokens, tokenizer.decode) == 0


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_stopped_within_300_tokens(tokenizer: Any, name: str) -> None:
    begin, cycle = (tokenizer(text, add_special_tokens=False).input_ids for text in LOOPS[name])
    assert 0 < stopped(begin + cycle * 300, tokenizer.decode) - len(begin) <= 300


def test_zeros_end_too(tokenizer: Any) -> None:
    tokens = tokenizer("0, " * 2000, add_special_tokens=False).input_ids
    assert 1000 < stopped(tokens, tokenizer.decode) <= 1100


@given(
    cycle=st.lists(st.integers(0, 200_000), min_size=1, max_size=256),
    begin=st.lists(st.integers(0, 200_000), max_size=500),
)
def test_any_cycle_is_seen_once_it_has_repeated_for_long_enough(cycle: list[int], begin: list[int]) -> None:
    end = stopped(begin + cycle * 1500, lambda tokens: "words") - len(begin)
    assert 0 < end <= max(300, 4 * len(cycle) + 16)


@pytest.mark.parametrize("length", [100, 150, 200, 256])
def test_what_comes_three_times_in_a_row_is_none(length: int) -> None:
    tokens = (list(range(length)) * 3 + [9999]) * 5
    assert stopped(tokens[: 3 * length + 1], lambda tokens: "words") == 0


def test_its_text_is_asked_for_only_when_something_repeats() -> None:
    asked: list[list[int]] = []
    loops = Loops(lambda tokens: asked.append(tokens) or "words")  # type: ignore[func-returns-value]
    assert not any(loops.push(number % 5000) for number in range(20_000))
    assert not asked
