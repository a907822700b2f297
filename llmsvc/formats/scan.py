"""Looking for marks in text that comes in pieces."""

from collections.abc import Iterable


def first(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    """Where the first mark stands, and which it is; of two at one place the longer."""
    places = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not places:
        return None
    at, _, mark = min(places)
    return at, mark


def leading(text: str, marks: Iterable[str]) -> str:
    """The mark that the text begins with, the longest if several; "" for none."""
    return max((mark for mark in marks if text.startswith(mark)), key=len, default="")


def trailing(text: str, marks: Iterable[str]) -> str:
    """The mark that the text ends with; "" for none."""
    return next((mark for mark in marks if text.endswith(mark)), "")


def begun(text: str, marks: Iterable[str]) -> bool:
    """Whether all of the text is the beginning of a mark, but not the whole."""
    return any(len(text) < len(mark) and mark.startswith(text) for mark in marks)


def tail(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of the text that may become a mark."""
    longest = 0
    for mark in marks:
        for length in range(min(len(text), len(mark) - 1), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
