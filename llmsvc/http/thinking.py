"""How much a model is to think, as clients of each API say it."""

import base64
import hashlib
from typing import Any, Literal

from pydantic import BaseModel, Field

from llmsvc.errors import BadRequest

EFFORTS = {
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""OpenAI's names, and the modes of ``chat.options`` that are nearest to them."""


class ThinkingConfig(BaseModel):
    """Anthropic's ``thinking``, which servers of OpenAI's API take as well. ``adaptive`` leaves it to the model."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


def thinking_options(
    effort: str | None, config: ThinkingConfig | None = None, name: str = "reasoning_effort"
) -> dict[str, Any]:
    """Those of ``chat.options`` that were set; ``name``: of the effort. Raises BadRequest for one that there is not."""
    chosen: dict[str, Any] = {}
    if effort is not None:
        if effort not in EFFORTS:
            raise BadRequest(f'{name} is one of {", ".join(EFFORTS)}, not "{effort[:40]}".')
        chosen["thinking"] = EFFORTS[effort]
    if config is not None:
        if config.type == "disabled":
            chosen["thinking"] = "off"
        elif config.type == "enabled":
            chosen.setdefault("thinking", "on")
        if config.budget_tokens is not None:
            chosen["thinking_budget"] = config.budget_tokens
    return chosen


def signature(reasoning: str) -> str:
    """What stands beside a thinking block. Blocks that come back are believed without it."""
    return base64.b64encode(hashlib.sha256(reasoning.encode("utf-8", "surrogatepass")).digest()).decode()
