"""Functions that a model may call, and calls that it makes."""

from dataclasses import dataclass
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.formats import schemas

Row = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Row

    def __post_init__(self) -> None:
        """Raises BadRequest for parameters that are no schema."""
        schemas.check(self.parameters)

    def row(self) -> Row:
        """As chat templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": described}


@dataclass(frozen=True)
class ToolCall:
    """``arguments`` is JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """What may be called. ``choice``: auto, required, or the name of the one that must be called."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"

    def __post_init__(self) -> None:
        """Raises BadRequest for a choice that is none of them."""
        if self.choice != "auto" and not self.callable:
            raise BadRequest(f'There is no tool "{self.choice}" to be called. Name one of those in tools.')

    @property
    def names(self) -> set[str]:
        return {tool.name for tool in self.tools}

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice != "auto"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the next answer may call."""
        return tuple(tool for tool in self.tools if self.choice in ("required", "auto", tool.name))
