"""Imports gradio in half the time.

At each import gradio parses the source of all its components to rewrite editor stubs (``.pyi``), which took 2.2 s
of 4.4 s here (gradio 6.31, ``component_meta.create_or_modify_pyi``). It skips a class whose file ``inspect`` cannot
tell, so for the length of that import ``inspect`` does not tell.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _no_stubs() -> Iterator[None]:
    tell = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("stubs are not wanted")
        return tell(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = tell


with _no_stubs():
    import gradio as gradio
