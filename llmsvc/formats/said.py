"""What an answer says, told apart while it comes."""

from dataclasses import dataclass
from typing import Protocol

from llmsvc.formats.tools import ToolCall


@dataclass(frozen=True)
class Said:
    """What is new: words for the user, reasoning, calls of tools."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls)


class Reader(Protocol):
    """Reads one answer as it comes, in pieces of any size. What may become a mark is held back."""

    def push(self, text: str) -> Said:
        """What is certain now."""

    def finish(self) -> Said:
        """What was held back, at the answer's end: a call may lack its last mark. Nothing of the answer is lost."""
