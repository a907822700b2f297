"""A turn: one answer being generated. The server owns it; clients only attach and watch."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from llmsvc.chat import context
from llmsvc.chat.sessions import NEW_TITLE, Sessions, message, new_id
from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.errors import BadRequest, Conflict, LlmsvcError, NotFound, StorageError
from llmsvc.models.pool import ModelPool
from llmsvc.store.database import Database, Row

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 1.0
FRAME_SECONDS = 0.05
_STATES = {FinishReason.STOP: "done", FinishReason.LENGTH: "done", FinishReason.CANCELLED: "stopped"}


class Turn:
    """One answer. Written on the event loop only; any number of watchers attach to it."""

    def __init__(self, session_id: str, owner: str, message_id: str) -> None:
        self.id = new_id()
        self.session_id, self.owner, self.message_id = session_id, owner, message_id
        self.text = ""
        self.tokens_before = 0
        self.state = "queued"
        self.note = ""
        self.error: LlmsvcError | None = None
        self.usage: Row = {}
        self.context: Row = {}
        self.engine: Any = None
        self.started = time.monotonic()
        self._first = 0.0
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped", "failed", "interrupted")

    def status(self) -> Row:
        """The ``status`` of the contract's stream."""
        return {
            "turn_id": self.id,
            "state": self.state,
            "offset": len(self.text),
            "usage": self.usage,
            "context": self.context,
            "sources": [],
            "error": str(self.error or ""),
            "note": self.note,
        }

    def changed(self) -> None:
        """Wake every watcher."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def receive(self, event: TokenEvent) -> None:
        """Take an event of the engine. A stop that the user asked for already decided the state."""
        if self.ended:  # interrupted by the service's end: what was saved stands
            return
        now = time.monotonic()
        self._first = self._first or now
        self.text += event.text
        self.usage = {
            "prompt_tokens": self.context.get("prompt", 0),
            "completion_tokens": self.tokens_before + event.tokens,
            "cached_tokens": event.cached_tokens,
            "ttft_seconds": round(self._first - self.started, 3),
            # The first token belongs to the prefill, so speed counts the intervals behind it.
            "tokens_per_second": round((event.tokens - 1) / (now - self._first), 1) if now > self._first else 0.0,
            "finish_reason": event.finish_reason or "",
        }
        self.state = "running"
        if event.finish_reason is FinishReason.ERROR:
            self.error = LlmsvcError(event.error)
        if event.finish_reason is not None:
            self.state = _STATES.get(event.finish_reason, "failed")
        self.changed()

    async def wait(self, timeout: float | None = None) -> None:
        """Return at the next change, or after ``timeout`` seconds."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return


class Turns:
    """Starts, watches and stops turns. Lives on one event loop."""

    def __init__(self, database: Database, sessions: Sessions, pool: ModelPool) -> None:
        self._db, self._sessions, self._pool = database, sessions, pool
        self._active: dict[str, Turn] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._mark_interrupted()

    def active(self, session_id: str) -> Turn | None:
        """The turn that runs in a session now."""
        return self._active.get(session_id)

    def sampling(self, values: Row) -> SamplingParams:
        """Checked sampling parameters: ``values`` over the saved settings. Raises BadRequest."""
        return parse_sampling({**self.settings(), **{k: v for k, v in values.items() if v is not None}})

    def settings(self) -> Row:
        return {**DEFAULTS, **self._db.setting("sampling")}

    def set_settings(self, values: Row) -> Row:
        """Save sampling and system-prompt defaults. Raises BadRequest."""
        if unknown := set(values) - set(DEFAULTS):
            raise BadRequest(f"Unknown setting: {', '.join(sorted(unknown))}. Known: {', '.join(DEFAULTS)}.")
        merged = {**self.settings(), **values}
        parse_sampling(merged)
        self._db.set_setting("sampling", merged)
        return merged

    def start(self, owner: str, session_id: str, text: str, *, model: str = "", **values: Any) -> Turn:
        """Store the user's message, then begin its answer; return at once.

        Must be called on the event loop. Raises BadRequest, NotFound or Conflict, with nothing stored.
        """
        session = self._sessions.row(owner, session_id)
        if not text.strip():
            raise BadRequest("The message is empty. Type something first.")
        if session_id in self._active:
            raise Conflict("This chat is still being answered. Wait for the end, or stop it first.")
        model = self._pool.catalogue.entry(model or session["model"]).id
        sampling = self.sampling(values)
        system = str(values.get("system") or self.settings()["system"])
        history = self._db.messages(session_id)
        answer_id = new_id()
        turn = Turn(session_id, owner, answer_id)
        self._db.update_session(session_id, {"running": turn.id})  # first: what a crash leaves is looked for there
        try:
            self._db.add_messages(
                session_id,
                [
                    message("user", text, turn.id),
                    message("assistant", "", turn.id, id=answer_id, state="running", model=model),
                ],
            )
        except StorageError:
            with suppress(StorageError):
                self._db.update_session(session_id, {"running": None})
            raise
        fields = {"turns": session["turns"] + 1}
        if session["title"] == NEW_TITLE and not session["turns"]:
            fields["title"] = first_line(text)
        self._sessions.touch(session_id, fields)
        self._launch(turn, model, system, history, text, sampling)
        return turn

    def resume(self, owner: str, session_id: str) -> Turn:
        """Go on with the last answer where it was interrupted, stopped or cut at the token limit.

        Must be called on the event loop. Raises BadRequest when it is complete, NotFound or Conflict.
        """
        session = self._sessions.row(owner, session_id)
        if session_id in self._active:
            raise Conflict("This chat is still being answered. Wait for the end, or stop it first.")
        messages = self._db.messages(session_id)
        if not can_continue(messages):
            raise BadRequest("The last answer is complete: there is nothing to continue. Ask for more instead.")
        *history, question, answer = messages
        turn = Turn(session_id, owner, answer["id"])
        turn.text, turn.tokens_before = answer["content"], answer["usage"].get("completion_tokens", 0)
        model, settings = self._pool.catalogue.entry(session["model"]).id, self.settings()
        self._db.update_session(session_id, {"running": turn.id})
        self._db.update_message(session_id, answer["id"], {"state": "running", "error": ""})
        self._launch(turn, model, str(settings["system"]), history, question["content"], parse_sampling(settings))
        return turn

    def _launch(
        self, turn: Turn, model: str, system: str, history: list[Row], text: str, sampling: SamplingParams
    ) -> None:
        self._active[turn.session_id] = turn
        self._tasks[turn.id] = asyncio.create_task(self._run(turn, model, system, history, text, sampling))

    def stop(self, owner: str, session_id: str) -> Row:
        """Stop the running turn; it keeps what it has. Raises NotFound when nothing runs."""
        self._sessions.row(owner, session_id)
        turn = self._active.get(session_id)
        if turn is None:
            raise NotFound("Nothing is being answered in this chat.")
        self._halt(turn)
        return turn.status()

    def abandon(self, session_id: str) -> None:
        """Stop whatever runs in a session, if anything does."""
        if turn := self._active.get(session_id):
            self._halt(turn)

    def running_sessions(self) -> set[str]:
        return set(self._active)

    def _halt(self, turn: Turn) -> None:
        if turn.engine is not None:
            turn.engine.cancel(turn.id)
        else:  # still waiting for its model
            turn.state = "stopped"
            turn.changed()

    async def attach(
        self, turn: Turn, offset: int = 0, until: asyncio.Event | None = None
    ) -> AsyncIterator[tuple[str, Row]]:
        """Yield (whole text, status) at each change, at most every FRAME_SECONDS, to the end or ``until``.

        The first frame comes when there is more than ``offset`` characters, or another state.
        """
        seen: tuple[int, str, str] = (offset, "", "")
        while until is None or not until.is_set():
            waiting = turn._changed  # taken before looking, so that no wake-up is lost
            now = (len(turn.text), turn.state, turn.note)
            if now != seen:
                seen = now
                yield turn.text, turn.status()
                if turn.ended and turn.id not in self._tasks:
                    return
                await asyncio.sleep(FRAME_SECONDS)
            elif turn.ended and turn.id not in self._tasks:
                return
            else:
                await _first_of(waiting, until)

    async def close(self) -> None:
        """Stop everything that runs, keeping its text as ``interrupted``."""
        for turn in list(self._active.values()):
            if not turn.ended:
                turn.state = "interrupted"
                turn.changed()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(
        self, turn: Turn, model: str, system: str, history: list[Row], text: str, sampling: SamplingParams
    ) -> None:
        try:
            await self._generate(turn, model, system, history, text, sampling)
        except LlmsvcError as error:
            turn.error, turn.state = error, "failed"
        except Exception as error:  # stored with the message, so that nobody waits for ever
            log.exception("turn failed")
            turn.error, turn.state = LlmsvcError(f"The answer failed: {error}"), "failed"
        try:
            self._save(turn)
            self._sessions.touch(turn.session_id, {"running": None})
        except LlmsvcError as error:  # disk full at the end: say so, keep the text on the page
            turn.error = error
        finally:
            self._active.pop(turn.session_id, None)
            self._tasks.pop(turn.id, None)
            turn.changed()

    async def _generate(
        self, turn: Turn, model: str, system: str, history: list[Row], text: str, sampling: SamplingParams
    ) -> None:
        pooled = await self._model(turn, model)
        if turn.ended or pooled is None:
            return
        self._sessions.touch(turn.session_id, {"model": model})  # not before: one that fails is no choice to keep
        loaded, engine = pooled.loaded, pooled.engine
        prompt = await asyncio.to_thread(
            context.build, loaded.tokenizer, loaded.window, system, history, text, turn.text
        )
        if turn.ended:
            return
        turn.context, turn.state, turn.note = prompt.ledger.row(), "prefill", ""
        turn.started = time.monotonic()
        turn.changed()
        loop = asyncio.get_running_loop()  # events cross from the engine's thread here and nowhere else

        def deliver(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(turn.receive, event)

        engine.submit(GenerationRequest(turn.id, prompt.tokens, sampling, deliver))
        turn.engine = engine
        saved = time.monotonic()
        while not turn.ended:
            await turn.wait(CHECKPOINT_SECONDS)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS and not turn.ended:
                saved = time.monotonic()
                try:
                    self._save(turn)
                    turn.note = ""
                except StorageError as error:  # the answer goes on; its end is saved if there is room by then
                    turn.note = str(error)
        if turn.state == "interrupted":
            engine.cancel(turn.id)

    async def _model(self, turn: Turn, model: str) -> Any:
        """The loaded model, or None when the turn was stopped while waiting for it."""
        waiting = asyncio.ensure_future(self._pool.acquire(model))
        try:
            while not waiting.done() and not turn.ended:
                pooled = self._pool.get(model)
                turn.note = f"{pooled.stage}…" if pooled and pooled.state == "loading" else ""
                turn.changed()
                await asyncio.wait([waiting], timeout=0.2)
            return await waiting if waiting.done() else None
        finally:
            waiting.cancel()

    def _save(self, turn: Turn) -> None:
        fields = {
            "content": turn.text,
            "state": turn.state if turn.ended else "running",
            "usage": turn.usage,
            "context": turn.context,
            "error": str(turn.error or ""),
        }
        self._db.update_message(turn.session_id, turn.message_id, fields)

    def _mark_interrupted(self) -> None:
        """After a crash: what was running keeps its last checkpoint and says that it was cut."""
        for session in self._db.sessions_with("running"):
            try:
                for row in self._db.messages(session["id"]):
                    if row["state"] == "running":
                        self._db.update_message(session["id"], row["id"], {"state": "interrupted"})
                self._db.update_session(session["id"], {"running": None})
            except StorageError as error:  # damaged or full: the other chats work, and it is tried at the next start
                log.warning("%s", error)


def can_continue(messages: list[Row]) -> bool:
    """Whether the last message is an answer that was cut."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        return False
    last = messages[-1]
    return last["state"] in ("interrupted", "stopped") or last["usage"].get("finish_reason") == "length"


DEFAULTS: Row = {
    "temperature": 0.2,
    "top_p": 0.95,
    "top_k": 0,
    "max_tokens": 1024,
    "seed": None,
    "stop": [],
    "system": "",
}

_LIMITS = {"temperature": (0.0, 5.0), "top_p": (0.0, 1.0), "top_k": (0, 100_000), "max_tokens": (1, 1_000_000)}


def parse_sampling(values: Row) -> SamplingParams:
    """Check values from the outside world. Raises BadRequest with the bounds."""
    numbers: dict[str, Any] = {}
    for name, (low, high) in _LIMITS.items():
        try:
            number = type(low)(values[name])
        except (TypeError, ValueError, OverflowError):
            raise BadRequest(f"{name} must be a number, not {values[name]!r}.") from None
        if not low <= number <= high:
            raise BadRequest(f"{name} must be between {low} and {high}, not {number}.")
        numbers[name] = number
    stop = values["stop"] or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
        raise BadRequest("stop must be a string or a list of strings.")
    seed = values["seed"]
    if seed is not None and (not isinstance(seed, int | float) or not 0 <= seed < 2**63):
        raise BadRequest("seed must be a whole number from 0 to 2^63 - 1.")
    return SamplingParams(**numbers, seed=None if seed is None else int(seed), stop=tuple(s for s in stops if s))


def first_line(text: str) -> str:
    """A title until the model makes one."""
    line = " ".join(text.split())
    return line if len(line) <= 48 else line[:47].rstrip() + "…"


async def _first_of(event: asyncio.Event, until: asyncio.Event | None) -> None:
    tasks = [asyncio.ensure_future(e.wait()) for e in (event, until) if e is not None]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
