"""gpt-oss' channels: an answer is a row of messages, each with a header in front of its content.

``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…``; a call names
the tool as its recipient, in front of the channel or behind it: ``<|channel|>commentary
to=functions.name <|constrain|>json<|message|>{…}<|call|>``.
https://github.com/openai/harmony, docs/format.md
"""

import json
import re
import uuid
from collections.abc import Collection, Iterator

from llmsvc.formats.said import Said
from llmsvc.formats.scan import first, leading, tail
from llmsvc.formats.tools import ToolCall

_MESSAGE = "<|message|>"
_IN_HEADER = ("<|start|>", "<|channel|>", "<|constrain|>", _MESSAGE)
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_MARKS = (*_IN_HEADER, *_ENDS)
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyReader:
    """Reads one answer as it comes: analysis is reasoning, everything else words or calls.

    ``names``: the tools that may be called; what is sent to others is given as words. ``opened``:
    the answer begins inside the analysis; ``continued``: its first words are there already.
    """

    def __init__(self, names: Collection[str] = (), *, opened: bool = False, continued: bool = False) -> None:
        self._names = names
        self._held = ""
        self._in_header, self._at_start = not (opened or continued), not (opened or continued)
        self._reasons, self._recipient = opened, ""
        self._call = ""
        self._first = not continued
        self._said = {"text": continued and not opened, "reasoning": continued and opened}

    def push(self, text: str) -> Said:
        """What is certain now."""
        self._held += text
        return _joined(self._steps())

    def finish(self) -> Said:
        """What was held back, at the answer's end. A header that was cut has no words."""
        said = _joined(self._steps())
        held, self._held = self._held, ""
        if self._in_header:
            last = Said() if leading(held.lstrip(), _MARKS) else Said(held)
        else:
            last = _joined([self._content(held), self._close()])
        return _joined([said, last])

    def _steps(self) -> Iterator[Said]:
        step = not self._at_start or self._begins()
        while step:
            if self._in_header:
                step = self._read_header()
            else:
                piece, step = self._read_content()
                yield piece

    def _begins(self) -> bool:
        """Whether it is known if the answer begins with a header; some models just answer."""
        start = self._held.lstrip()
        if not start or any(mark.startswith(start) for mark in (*_MARKS, "to=")):
            return False
        self._at_start = False
        if not leading(start, (*_MARKS, "to=")):
            self._in_header = False
            self._open("")
        return True

    def _read_header(self) -> bool:
        """Whether it is complete."""
        found = first(self._held, (_MESSAGE, *_ENDS))
        if not found:
            return False
        at, mark = found
        header, self._held = self._held[:at], self._held[at + len(mark) :]
        if mark == _MESSAGE:
            self._in_header = False
            self._open(header)
        return True

    def _open(self, header: str) -> None:
        """Begin a message."""
        header = header.rpartition("<|start|>")[2]
        recipient = _RECIPIENT.search(header)
        name = recipient[1].removeprefix("functions.") if recipient else ""
        self._recipient = name if name in self._names else ""
        channel = _CHANNEL.search(header)
        self._reasons = channel is not None and channel[1] == "analysis"
        self._first, self._call = True, ""

    def _read_content(self) -> tuple[Said, bool]:
        """Content up to where the message may end; whether it ended."""
        found = first(self._held, _MARKS)
        if not found:
            certain = len(self._held) - tail(self._held, _MARKS)
            piece, self._held = self._content(self._held[:certain]), self._held[certain:]
            return piece, False
        at, mark = found
        piece = self._content(self._held[:at])
        if mark in (_MESSAGE, "<|constrain|>"):  # out of place
            self._held = self._held[at + len(mark) :]
            return piece, True
        self._held = self._held[at + len(mark) * (mark in _ENDS) :]
        self._in_header = True
        return _joined([piece, self._close()]), True

    def _content(self, text: str) -> Said:
        """A piece of the message; one message stands behind another with a blank line between."""
        if self._recipient:
            self._call += text
            return Said()
        if not text:
            return Said()
        kind = "reasoning" if self._reasons else "text"
        if self._first and self._said[kind]:
            text = f"\n\n{text}"
        self._first, self._said[kind] = False, True
        return Said(reasoning=text) if self._reasons else Said(text)

    def _close(self) -> Said:
        """The call that the message was; what is no JSON object is given as words."""
        name, self._recipient = self._recipient, ""
        text, self._call = self._call, ""
        if not name:
            return Said()
        try:
            arguments = json.loads(text or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            self._reasons = False
            return self._content(text)
        said = json.dumps(arguments, ensure_ascii=False)
        return Said(calls=(ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, said),))


def _joined(pieces: Iterator[Said] | list[Said]) -> Said:
    pieces = list(pieces)
    return Said(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.calls),
    )
