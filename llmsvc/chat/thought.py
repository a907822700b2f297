"""The reasoning of an answer: read from the engine's text as it comes, its tokens counted and its time taken."""

from llmsvc.engine import TokenEvent
from llmsvc.formats.said import Reader, Said


def read(reader: Reader | None, event: TokenEvent) -> Said:
    """What an event says; with the last one, what was held back as well. Without a reader all of it is text."""
    said = reader.push(event.text) if reader and event.text else Said(event.text)
    if reader and event.finish_reason is not None:
        said = joined(said, reader.finish())
    return joined(Said(reasoning=event.reasoning), said) if event.reasoning else said


def joined(first: Said, then: Said) -> Said:
    """One behind the other."""
    return Said(first.text + then.text, first.reasoning + then.reasoning, first.calls + then.calls)


class Thought:
    """``tokens`` and ``seconds`` of the reasoning so far; those of an answer that goes on add up."""

    def __init__(self, tokens: int = 0, seconds: float = 0.0) -> None:
        self.tokens, self.seconds = tokens, seconds
        self.running = False
        self._counted = 0
        self._since = 0.0

    def begin(self, opened: bool) -> None:
        """A part of the answer comes; ``opened``: it begins inside the reasoning."""
        self.running, self._counted, self._since = opened, 0, 0.0

    def left(self, budget: int) -> int:
        """Of so many tokens; 0 for no bound stays that."""
        return budget and max(1, budget - self.tokens)

    def take(self, said: Said, tokens: int, now: float) -> None:
        """``tokens``: of this part so far; ``now``: by the monotonic clock. A mark belongs to what it ends."""
        was = self.running
        if said.reasoning:
            self.running = True
        if said.text.strip() or said.calls:
            self.running = False
        if was or self.running:
            self._since = self._since or now
            self.seconds += now - self._since
        self._since = now if self.running else 0.0
        if self.running:
            self.tokens += tokens - self._counted
        self._counted = tokens
