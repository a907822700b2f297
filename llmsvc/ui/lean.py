"""Gradio without work that this page never needs, for what it does at each frame of each stream.

Measured by ``bench.watching``; each is safe to lose with another version of Gradio, and only costs time then.
"""

import copy
import sys
from typing import Any

import gradio as gr

# Gradio looks for it around every call, on the whole path when it is not there. Nothing here draws with it.
sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]

_SKIP = gr.skip()


class LeanBlocks(gr.Blocks):  # type: ignore[misc]
    """``gr.skip()`` costs nothing: as it stands, the component is built anew and described by a JSON schema."""

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        if len(block_fn.outputs) < 2 or not isinstance(predictions, list | tuple):
            whole: list[Any] = await super().postprocess_data(block_fn, predictions, state)
            return whole
        said = [number for number, value in enumerate(predictions) if value != _SKIP]
        found: list[Any] = [_SKIP] * len(predictions)
        if said:
            part = copy.copy(block_fn)
            part.outputs = [block_fn.outputs[number] for number in said]
            values = [predictions[number] for number in said]
            shown = await super().postprocess_data(part, values if len(said) > 1 else values[0], state)
            for number, value in zip(said, shown, strict=True):
                found[number] = value
        return found
