"""What the server knows of each open browser tab: only what it shows, nothing that would be lost with it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from llmsvc.ui.chat import WINDOW

FORGET_SECONDS = 3600


@dataclass
class Tab:
    """One page load. A client chooses its own key, so nothing here grants anything: owners are checked on every use."""

    session_id: str = ""
    version: int = 0
    """Of the session, as it is shown. The server refuses what was decided on an older one."""
    limit: int = WINDOW
    mounted: tuple[str, ...] = ()
    """The messages in the long part of the conversation."""
    files: tuple[str, int] = ("", -1)
    """The session whose files are shown, and their version."""
    thinking: tuple[Any, ...] = ()
    """The modes of thinking that are offered, the chosen one, and its bound."""
    editing: tuple[str, str] = ("", "")
    """"message" or "queued", and its id, while the composer holds a message that is being changed."""
    forecast: tuple[str, str] = ("", "")
    """The model and quantisation for which a forecast was asked last: one that was slower is not shown over it."""
    last_asked: str = ""
    deleted: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options chosen before the chat has its first message."""
    seen: tuple[Any, ...] = ()
    count: int = 0
    turn: str = ""
    """The running answer that this tab was told to watch."""
    told: str = ""
    """What stands in the page's ``go`` field, if the last view has arrived."""
    shown: str = "0 "
    """How many messages stand on the screen then, and the id of the last; the running answer is not among them."""
    repaired: str = ""
    """The ``told`` for which all messages were sent again, since others were on the screen."""
    missed: int = 0
    """How many times in a row the page said that it has not."""
    used_at: float = 0.0

    def open(self, session_id: str) -> None:
        """Show a session."""
        if session_id != self.session_id or not session_id:
            self.session_id, self.limit, self.settings = session_id, WINDOW, {}
            self.editing, self.mounted, self.repaired = ("", ""), (), ""


class Tabs:
    """By Gradio's session hash. Used on the event loop only."""

    def __init__(self) -> None:
        self._tabs: dict[str, Tab] = {}

    def of(self, request: gr.Request, start: Callable[[], str] = str) -> Tab:
        """This tab; one that the server does not know (any more) shows the session that ``start`` names."""
        now, key = time.monotonic(), str(request.session_hash)
        if key not in self._tabs:
            for old in [k for k, t in self._tabs.items() if now - t.used_at > FORGET_SECONDS]:
                del self._tabs[old]
            self._tabs[key] = Tab(session_id=start())
        self._tabs[key].used_at = now
        return self._tabs[key]
