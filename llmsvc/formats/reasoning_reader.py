"""Reads reasoning between marks: all formats but gpt-oss' (see ``formats.harmony``)."""

from collections.abc import Iterator

from llmsvc.formats.reasoning import ReasoningFormat
from llmsvc.formats.said import Said
from llmsvc.formats.scan import begun, first, leading, tail


class ReasoningReader:
    """Splits an answer, as it comes, into reasoning and words. What may become a mark is held back.

    ``opened``: the answer begins inside the reasoning; ``continued``: its first words are there
    already, so white space at the beginning counts.
    """

    def __init__(self, format_: ReasoningFormat, *, opened: bool = False, continued: bool = False) -> None:
        self._format = format_
        self._wraps = dict(format_.wraps)
        self._held = ""
        self._state = "reasoning" if opened else "words" if continued else "start"
        self._fresh = not continued
        self._trims = self._spoke = self._reasoned = self._again = False
        self._wrapped = format_.wraps[0][1] if format_.wraps and continued and not opened else ""

    def push(self, text: str) -> Said:
        """What is certain now."""
        self._held += text
        return self._gather(self._steps())

    def finish(self) -> Said:
        """What was held back, at the answer's end."""
        said = self._gather(self._steps())
        held, self._held = self._held, ""
        if self._state == "reasoning":
            more = self._reasoning(held.rstrip())
        elif self._wrapped and held.strip() == self._wrapped:
            more = Said()
        elif self._state == "start" and self._trims:
            more = Said(held.strip())
        else:
            more = Said(held)
        return Said(said.text + more.text, said.reasoning + more.reasoning)

    def _gather(self, steps: Iterator[Said]) -> Said:
        pieces = list(steps)
        return Said("".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces))

    def _steps(self) -> Iterator[Said]:
        """Until nothing more is certain."""
        step = True
        while step:
            state = self._state
            if state == "start":
                step = self._start()
            elif state == "reasoning":
                piece, step = self._reason()
                yield piece
            else:
                piece, step = self._speak()
                yield piece

    def _start(self) -> bool:
        """Before the first words of the answer. Whether it is known what comes."""
        rest = self._held.lstrip()
        marks = (*self._format.opens, *self._format.closes, *self._wraps)
        mark = leading(rest, marks)
        if not rest or (begun(rest, marks) and not mark):
            return False
        if not mark:
            if self._trims:
                space = self._held[: len(self._held) - len(rest)]
                self._held = space.rpartition("\n")[2] * ("\n" in space) + rest
            self._state = "words"
            return True
        self._held = rest[len(mark) :]
        if mark in self._format.opens:
            self._state, self._fresh, self._again = "reasoning", True, True
        else:
            self._wrapped = self._wraps.get(mark, self._wrapped)
            self._trims = not self._spoke
        return True

    def _reason(self) -> tuple[Said, bool]:
        """Reasoning up to where it may end; whether it ended."""
        format_ = self._format
        if self._fresh and not self._enter():
            return Said(), False
        borders = (*format_.closes, *format_.interrupts)
        found = first(self._held, (*borders, *format_.hidden))
        if not found:
            certain = self._held[: len(self._held) - tail(self._held, (*borders, *format_.hidden))].rstrip()
            self._held = self._held[len(certain) :]
            return self._reasoning(certain), False
        at, mark = found
        if mark in format_.hidden:
            self._held = self._held[:at] + self._held[at + len(mark) :]
            return Said(), True
        piece = self._reasoning(self._held[:at].rstrip())
        self._held = self._held[at + len(mark) * (mark in format_.closes) :]
        self._state, self._trims = "start" if mark in format_.closes else "words", not self._spoke
        self._wrapped = self._wraps.get(mark, self._wrapped)
        return piece, True

    def _enter(self) -> bool:
        """Leave out what stands in front of the first thought. Whether that is all there."""
        skipped = (*self._format.opens, *self._format.hidden, self._format.label)
        while mark := leading(self._held.lstrip(), filter(None, skipped)):
            self._held = self._held.lstrip()[len(mark) :]
        rest = self._held.lstrip()
        if not rest or begun(rest, filter(None, skipped)):
            return False
        self._held, self._fresh = rest, False
        return True

    def _reasoning(self, text: str) -> Said:
        """A piece of it; a second part of it stands behind a blank line."""
        if not text:
            return Said()
        between, self._reasoned = "\n\n" if self._reasoned and self._again else "", True
        self._again = False
        return Said(reasoning=between + text)

    def _speak(self) -> tuple[Said, bool]:
        """Words up to where a mark may begin; whether there is more to read."""
        format_ = self._format
        marks = self._marks_in_words()
        found = first(self._held, marks)
        if not found:
            keep = tail(self._held, marks)
            if self._wrapped:
                keep = len(self._held) - len(self._held[: len(self._held) - keep].rstrip())
            return self._words(len(self._held) - keep), False
        at, mark = found
        if not format_.special:  # the end of a wrapped answer, unless more words follow
            if not self._held[at + len(mark) :].strip():
                return self._words(len(self._held[:at].rstrip())), False
            return self._words(at + len(mark)), True
        piece = self._words(at)
        self._held = self._held[len(mark) :]
        if mark in format_.opens:
            self._state, self._fresh, self._again = "reasoning", True, True
        return piece, True

    def _marks_in_words(self) -> tuple[str, ...]:
        format_ = self._format
        if not format_.special:
            return (self._wrapped,) if self._wrapped else ()
        return (
            *format_.opens,
            *format_.closes,
            *self._wraps,
            *self._wraps.values(),
            *format_.hidden,
        )

    def _words(self, length: int) -> Said:
        taken, self._held = self._held[:length], self._held[length:]
        self._spoke = self._spoke or bool(taken)
        return Said(taken)
