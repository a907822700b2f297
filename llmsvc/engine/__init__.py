"""Turns prompts into tokens. Imports torch, transformers and the standard library, and ``errors`` of ours.

Importing the package alone stays light, so that a page can open before torch is there.
"""

from typing import TYPE_CHECKING, Any

from llmsvc.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent

if TYPE_CHECKING:
    from llmsvc.engine.engine import Engine

__all__ = ["Engine", "FinishReason", "GenerationRequest", "SamplingParams", "TokenEvent"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from llmsvc.engine.engine import Engine

        return Engine
    raise AttributeError(name)
