"""What the tests of the APIs share."""

import time
from collections.abc import Callable
from typing import Any

from gradio_client import Client

from llmsvc.models.catalogue import SMOLLM2

MODEL = SMOLLM2.id
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
STORY = [{"role": "user", "content": "Write a long story about a lighthouse and the sea."}]
OSLO = {"role": "user", "content": "What is the weather in Oslo, in celsius?"}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def busy(app: Any) -> int:
    """Requests that the model has in hand."""
    rows = Client(app.url, verbose=False).predict(api_name="/model_list")
    return sum(row["running"] + row["queued"] for row in rows)


def until(condition: Callable[[], Any], seconds: float = 1200, pause: float = 0.02) -> Any:
    """Wait for ``condition`` and return what it said. Long, since a busy machine is no failure."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(pause)
    return found
