"""Cuts a page of text into chunks: by heading, paragraph and table, or, for code, by function and class.

A chunk is a span of its page, so that nothing is stored twice, and a head: what stands above it (headings, the head of
its table, the class and function it belongs to), without which a short passage says little. Runs in the child process.
"""

import importlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

Span = tuple[int, int, str]
"""From and up to which character of the page, and the head."""

LONGEST = 900
"""Characters; code may have half as many more, to keep functions whole."""
_HEADING = re.compile(r"(#{1,6}) +(.+)")
_FENCE = re.compile(r" {0,3}(`{3,})")
_RULE = re.compile(r"([=\-~^\"'*+#.:_])\1{2,}\s*")
_GRAMMARS = {
    **dict.fromkeys((".py", ".pyi"), ("tree_sitter_python", "language")),
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), ("tree_sitter_javascript", "language")),
    ".ts": ("tree_sitter_typescript", "language_typescript"),
    ".tsx": ("tree_sitter_typescript", "language_tsx"),
    ".java": ("tree_sitter_java", "language"),
    ".go": ("tree_sitter_go", "language"),
    ".rs": ("tree_sitter_rust", "language"),
    **dict.fromkeys((".c", ".h"), ("tree_sitter_c", "language")),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hpp", ".hh"), ("tree_sitter_cpp", "language")),
}
_DEFINITION = re.compile(
    r"(function|method|class|interface|struct|enum|trait|impl|type|module|namespace|constructor)_"
    r"(definition|declaration|item|specifier)|generator_function_declaration"
)
_PLAIN_DEFINITION = re.compile(
    r"^[ \t]*(?:(?:export|public|private|protected|static|final|abstract|async|local|sub|pub)\s+)*"
    r"(?:def|function|func|fun|fn|sub|class|module|interface|struct|trait|object|proc|CREATE\s+\w+)\s+([\w.:]+)",
    re.MULTILINE | re.IGNORECASE,
)


class Cutter:
    """For the pages of one file, in order: a heading holds on the pages behind it too."""

    def __init__(self, kind: str, name: str) -> None:
        self._ending = Path(name).suffix.lower()
        self._code = kind == "code"
        self._headings: list[tuple[int, str]] = []
        self._rules: list[str] = []
        self._fence = ""

    def cut(self, text: str) -> list[Span]:
        """Spans that leave out nothing but blank space, in order."""
        pieces = self._symbols(text) if self._code else self._paragraphs(text)
        return [(*_trimmed(text, start, end), head) for start, end, head in pieces if text[start:end].strip()]

    def _paragraphs(self, text: str) -> Iterator[Span]:
        """Whole lines up to LONGEST, where possible ending with a paragraph; a heading begins a new chunk."""
        start, head, table = 0, self._head(), ""
        pause = 0  # the end of the last paragraph since ``start``
        at = 0
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines):
            heading = self._heading(line, lines[number + 1] if number + 1 < len(lines) else "")
            row = line.startswith("|")
            if heading or at + len(line) - start > LONGEST:
                end = at if heading or row or pause - start < LONGEST // 3 else pause
                if end > start:
                    yield start, end, head
                start, pause = end, end
                if heading:
                    self._headings = [h for h in self._headings if h[0] < heading[0]] + [heading]
                head = " › ".join(filter(None, (self._head(), table if row and start == at else "")))
                while at + len(line) - start > LONGEST * 3 // 2:  # one endless line
                    yield start, start + LONGEST, head
                    start += LONGEST
            table = (table or line.strip()[:200]) if row else ""
            at += len(line)
            pause = at if not line.strip() else pause
        yield start, len(text), head

    def _heading(self, line: str, below: str) -> tuple[int, str] | None:
        """Level and text: Markdown's, and lines that are ruled below, whose levels are those of the first of a kind.

        Code between fences has none: its comments look the same.
        """
        if fence := _FENCE.match(line):
            if not self._fence:
                self._fence = fence[1]
            elif fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                self._fence = ""
        elif not self._fence:
            if found := _HEADING.match(line):
                return len(found[1]), found[2].strip()
            title, rule = line.strip(), _RULE.fullmatch(below)
            if rule and line[0].isalnum() | (line[0] in "'\"`*:(<$") and 3 * len(below.strip()) > 2 * len(title):
                if rule[1] not in self._rules:
                    self._rules.append(rule[1])
                return self._rules.index(rule[1]) + 1, title
        return None

    def _head(self) -> str:
        return " › ".join(text for _, text in self._headings)

    def _symbols(self, text: str) -> Iterator[Span]:
        """Between the beginnings and ends of definitions; small neighbours of one head are joined, long ones cut."""
        marks = sorted({0: "", **dict(self._definitions(text)), len(text): ""}.items())
        pieces: list[Span] = []
        for (start, head), (end, _) in pairwise(marks):
            first, _, before = pieces[-1] if pieces else (0, 0, None)
            # What stands before a definition and within the same class: its decorators, comments, the class's line.
            around = before is not None and before in ("", head.rpartition(".")[0]) and start - first < 120
            if (before == head or around) and end - first <= LONGEST:
                pieces[-1] = (first, end, head)
            else:
                pieces.append((start, end, head))
        for start, end, head in pieces:
            while end - start > LONGEST * 3 // 2:
                line = text.rfind("\n", start + LONGEST // 2, start + LONGEST) + 1 or start + LONGEST
                yield start, line, head
                start = line
            yield start, end, head

    def _definitions(self, text: str) -> Iterator[tuple[int, str]]:
        """Where the symbol changes, and what it is from there on."""
        if self._ending not in _GRAMMARS:
            for found in _PLAIN_DEFINITION.finditer(text):
                yield found.start(), found[1]
            return
        import tree_sitter

        module, name = _GRAMMARS[self._ending]
        language = tree_sitter.Language(getattr(importlib.import_module(module), name)())
        raw = text.encode()
        places = _Characters(raw)
        stack: list[tuple[Any, str, bool]] = [(tree_sitter.Parser(language).parse(raw).root_node, "", False)]
        while stack:
            node, path, over = stack.pop()
            if over:
                yield places.of(node.end_byte), path
                continue
            inner = path
            if _DEFINITION.fullmatch(node.type) and (symbol := _name(node)):
                inner = f"{path}.{symbol}" if path else symbol
                yield places.of(node.start_byte), inner
                stack.append((node, path, True))
            stack += [(child, inner, False) for child in reversed(node.named_children)]


class _Characters:
    """Byte offsets as character offsets, asked for in growing order."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._byte, self._character = raw, 0, 0

    def of(self, byte: int) -> int:
        self._character += len(self._raw[self._byte : byte].decode(errors="ignore"))
        self._byte = byte
        return self._character


def _name(node: Any) -> str:
    for field in ("name", "declarator", "type"):
        if (child := node.child_by_field_name(field)) is not None:
            while (inner := child.child_by_field_name("declarator")) is not None:
                child = inner
            return str(child.text.decode(errors="replace")).split("(")[0].strip()[:80]
    return ""


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without blank lines around; the indentation of the first line stays."""
    piece = text[start:end]
    end = start + len(piece.rstrip())
    blank = re.match(r"(?:[ \t]*\n)*", piece)
    return start + (blank.end() if blank else 0), end
