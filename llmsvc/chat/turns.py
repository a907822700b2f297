"""Starts, watches and stops turns, one at a time in each session; what is sent meanwhile waits its turn."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from llmsvc.chat import branches, options
from llmsvc.chat.asking import Manner, request
from llmsvc.chat.context import Prompt
from llmsvc.chat.crossing import CROSSING_SECONDS, Crossing
from llmsvc.chat.idle import Idle
from llmsvc.chat.memory import Memory
from llmsvc.chat.preferences import Preferences
from llmsvc.chat.prompts import Prompts
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.summaries import Summaries
from llmsvc.chat.titles import Titles, first_line
from llmsvc.chat.transfer import message, new_id, parted
from llmsvc.chat.turn import Turn, Watch, can_continue
from llmsvc.errors import BadRequest, Conflict, LlmsvcError, NotFound, StorageError, Unavailable
from llmsvc.files.files import Files
from llmsvc.logs import event
from llmsvc.models.loader import LoadedModel
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.rates import Rates
from llmsvc.store.database import Database, Row

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 0.75
FRAMES_AT_ONCE = 32
"""With more watchers than this, frames come less often, so that what all of them cost stays the same. Each owner has an
equal part of it, however many watch."""
MOST_QUEUED = 20
STALE = "This chat went on elsewhere. Here is its newest state; your text is still in the box."


class Turns:
    """Starts, watches and stops turns. Lives on one event loop, on which all of its methods are called."""

    def __init__(
        self,
        database: Database,
        sessions: Sessions,
        pool: ModelPool,
        files: Files,
        rates: Rates,
        memory: Memory,
        preferences: Preferences,
    ) -> None:
        self._rates, self._memory, self._preferences = rates, memory, preferences
        self._db, self._sessions, self._pool, self._files = database, sessions, pool, files
        self._prompts = Prompts(database, files, memory)
        self._active: dict[str, Turn] = {}
        self._queued: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._idle = Idle(pool)
        self._titles = Titles(database, sessions, self._idle)
        self._summaries = Summaries(self._prompts, self._idle)
        self.crossing = Crossing()
        self._watchers: Counter[str] = Counter()
        self._others = 0
        self._closing = False
        self._mark_interrupted()

    # Starting

    def start(
        self, owner: str, session_id: str, text: str, *, model: str = "", version: int | None = None, **values: Any
    ) -> Turn:
        """Store the user's message and begin its answer, or let it wait for the one that runs; return at once.

        ``version``: what the client knows of the session. Raises BadRequest, NotFound, TooMany, or Conflict when the
        client is out of date or too much waits already; nothing is stored then.
        """
        session = self._sessions.row(owner, session_id)
        if self._closing:
            raise Unavailable("The service is being stopped. Send the message again when it runs.")
        if not text.strip():
            raise BadRequest("The message is empty. Type something first.")
        if version is not None and version != self._sessions.version(session_id):
            raise Conflict(STALE)
        model = self._pool.catalogue.entry(model or session["model"]).id
        chosen = self._preferences.of_answer(session, model, values)
        self._rates.take(owner)
        turn = Turn(session_id, owner, new_id())
        if session_id not in self._active and not self._waits(session_id):
            self._begin(turn, self._tip_id(session_id), text, model, chosen)
            return turn
        with self._db.session_rows(session_id, "queue") as rows:
            if len(rows) >= MOST_QUEUED:
                raise Conflict(f"{len(rows)} messages wait already. Wait for an answer, or withdraw one.")
            row = {"id": turn.id, "message_id": turn.message_id, "content": text, "created_at": time.time()}
            rows.add({**row, "model": model, "options": chosen})
        self._queued[turn.id] = turn
        self._sessions.changed(session_id)
        self._next(session_id)
        return turn

    def edit(
        self, owner: str, session_id: str, message_id: str, text: str, *, version: int | None = None, **values: Any
    ) -> Turn:
        """Answer a changed message, or change an answer, on a branch of its own. Raises as ``start`` does."""
        session, row = self._resting(owner, session_id, message_id, version)
        if not text.strip():
            raise BadRequest("The message is empty. Type something first.")
        if row["role"] == "user":
            self._rates.take(owner)
            turn = Turn(session_id, owner, new_id())
            self._begin(
                turn,
                row["parent"],
                text,
                session["model"],
                self._preferences.of_answer(session, session["model"], values),
            )
            return turn
        with self._db.session_rows(session_id, "messages") as rows:
            reasoning, words = parted({**row, "content": text, "reasoning": ""})
            changed = {"id": new_id(), "content": words, "state": "done", "error": "", "created_at": time.time()}
            changed |= {"reasoning": reasoning or parted(row)[0], "chosen": branches.version(rows) + 1}
            rows.add({**row, **changed})
        self._touch(session_id, {"updated_at": time.time()})
        return Turn.stored(session_id, owner, {**row, **changed})

    def regenerate(
        self, owner: str, session_id: str, message_id: str, *, version: int | None = None, **values: Any
    ) -> Turn:
        """Answer the same message once more, on a branch of its own. Raises as ``start`` does."""
        session, row = self._resting(owner, session_id, message_id, version)
        question = row["id"] if row["role"] == "user" else row["parent"]
        if not question:
            raise BadRequest("This message answers nothing, so it cannot be made again.")
        self._rates.take(owner)
        turn = Turn(session_id, owner, new_id())
        self._begin(
            turn, question, None, session["model"], self._preferences.of_answer(session, session["model"], values)
        )
        return turn

    def resume(self, owner: str, session_id: str, *, version: int | None = None) -> Turn:
        """Go on with the last answer where it was interrupted, stopped or cut at the token limit.

        Raises BadRequest when it is complete, NotFound or Conflict.
        """
        session = self._sessions.row(owner, session_id)
        answer = self._tip(session_id)
        if answer is None or not can_continue(answer):
            raise BadRequest("The last answer is complete: there is nothing to continue. Ask for more instead.")
        self._resting(owner, session_id, answer["id"], version)
        self._rates.take(owner)
        turn = Turn(session_id, owner, answer["id"])
        model = answer["model"] or session["model"]
        turn.go_on(answer, self._pool.catalogue.entry(model).remote)
        chosen = answer["options"] or self._preferences.of_answer(session, model, {})
        self._touch(session_id, {"running": turn.id, "updated_at": time.time()})
        fields = {"state": "running", "error": "", "turn_id": turn.id, "options": chosen}
        self._db.update_message(session_id, answer["id"], fields)
        turn.options = chosen
        self._launch(turn, model, answer["parent"])
        return turn

    # The queue: messages that were sent while another was answered

    def edit_queued(self, owner: str, session_id: str, turn_id: str, text: str) -> None:
        """Raises BadRequest, or NotFound when it is being answered already."""
        self._sessions.row(owner, session_id)
        if not text.strip():
            raise BadRequest("The message is empty. Withdraw it instead.")
        with self._db.session_rows(session_id, "queue") as rows:
            if not rows.update(turn_id, {"content": text}):
                raise NotFound("This message does not wait any more.")
        self._sessions.changed(session_id)

    def withdraw(self, owner: str, session_id: str, turn_id: str) -> None:
        """Take back a message that waits. Raises NotFound when it is being answered already."""
        self._sessions.row(owner, session_id)
        with self._db.session_rows(session_id, "queue") as rows:
            if turn_id not in rows:
                raise NotFound("This message does not wait any more.")
            rows.remove(turn_id)
        self._sessions.changed(session_id)
        self._drop(turn_id, "stopped")

    def send_queued(self, owner: str, session_id: str) -> Turn | None:
        """Answer what waits since the service stopped. The turn that runs now, if any. Raises NotFound."""
        self._sessions.row(owner, session_id)
        self._next(session_id)
        return self._active.get(session_id)

    def queued(self, owner: str, session_id: str, turn_id: str) -> Row:
        """A message that waits. Raises NotFound."""
        self._sessions.row(owner, session_id)
        with self._db.session_rows(session_id, "queue") as rows:
            if row := rows.get(turn_id):
                return row
        raise NotFound("This message does not wait any more.")

    # Watching and stopping

    def active(self, session_id: str) -> Turn | None:
        """The turn that runs in a session now."""
        return self._active.get(session_id)

    def last(self, owner: str, session_id: str) -> Turn:
        """The turn that runs, or else the last of the shown branch. Raises NotFound."""
        self._sessions.row(owner, session_id)
        if turn := self._active.get(session_id):
            return turn
        row = self._tip(session_id)
        if row is None or row["role"] != "assistant":
            raise NotFound("Nothing was answered in this chat yet. Send a message first.")
        return Turn.stored(session_id, owner, row)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While something is generated that belongs to no session: the models have no time of their own."""
        self._others += 1
        self._idle.busy()
        try:
            yield
        finally:
            self._others -= 1
            self._rest()

    def running_sessions(self, owner: str) -> set[str]:
        """Those of this owner that are being answered."""
        return {turn.session_id for turn in self._active.values() if turn.owner == owner}

    async def stop(self, owner: str, session_id: str) -> Row:
        """Stop the running turn, keeping what it has; its status once that is saved. Raises NotFound."""
        self._sessions.row(owner, session_id)
        turn = self._active.get(session_id)
        if turn is None:
            raise NotFound("Nothing is being answered in this chat.")
        self._halt(turn)
        async for _ in self.attach(turn, len(turn.text)):
            pass
        return turn.status()

    def abandon(self, session_id: str) -> None:
        """Stop whatever runs in a session that was deleted; what waits is kept for an undo."""
        if turn := self._active.get(session_id):
            self._halt(turn)
        for turn in [t for t in self._queued.values() if t.session_id == session_id]:
            self._drop(turn.id, "interrupted")

    async def attach(self, turn: Turn, offset: int = 0) -> AsyncGenerator[tuple[str, Row], None]:
        """Yield (whole text, status) as they change, to the turn's end.

        The first frame comes when there is more than ``offset`` characters, or another state. Tokens come here gathered
        (see Crossing), and a slow watcher, or each of very many, sees fewer frames: nobody slows anybody.
        """
        async with aclosing(self.follow(turn, offset)) as changes:
            async for _ in changes:
                yield turn.text, turn.status()

    async def follow(self, turn: Turn, offset: int = 0) -> AsyncGenerator[None, None]:
        """``attach`` for who looks at the turn itself."""
        watch = Watch()
        seen: tuple[int, int, str, str] = (offset, 0, "", "")
        turn.watches.add(watch)
        self._watchers[turn.owner] += 1
        try:
            while True:
                finished, now = turn.finished, (len(turn.text), len(turn.reasoning), turn.state, turn.note)
                if now != seen:
                    seen = now
                    yield
                    sharing = self._watchers[turn.owner] * len(self._watchers)
                    if not finished and (more := sharing / FRAMES_AT_ONCE - 1) > 0:
                        await turn.pause(CROSSING_SECONDS * more)
                elif not finished and not await watch.wait():
                    seen = (-1, 0, "", "")
                if finished:
                    return
        finally:
            self._watchers[turn.owner] -= 1
            self._watchers += Counter()  # without those who are gone
            turn.watches.discard(watch)
            watch.close()

    async def close(self) -> None:
        """End everything that runs, keeping its text as ``interrupted``; what waits is kept as it is."""
        self._closing = True
        for turn in self._active.values():
            if turn.engine is not None:
                turn.engine.cancel(turn.id)
            turn.end("interrupted")
        for turn_id in list(self._queued):
            self._drop(turn_id, "interrupted")
        if self._flushing is not None:  # closing the database writes all there is
            self._flushing.cancel()
        await self._idle.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_resting(self, owner: str, session_id: str, version: int | None) -> Row:
        """The session, in which nothing runs. Raises NotFound, or Conflict if an answer runs or ``version`` is old."""
        session = self._sessions.row(owner, session_id)
        if session_id in self._active:
            raise Conflict("This chat is still being answered. Wait for the end, or stop it first.")
        if version is not None and version != self._sessions.version(session_id):
            raise Conflict(STALE)
        return session

    # Inside

    def _resting(self, owner: str, session_id: str, message_id: str, version: int | None) -> tuple[Row, Row]:
        """A session in which nothing runs, and one of its messages. Raises NotFound or Conflict."""
        session = self.check_resting(owner, session_id, version)
        return session, self._sessions.message(owner, session_id, message_id)

    def _tip(self, session_id: str) -> Row | None:
        with self._db.session_rows(session_id, "messages") as rows:
            return branches.tip(rows)

    def _tip_id(self, session_id: str) -> str:
        row = self._tip(session_id)
        return row["id"] if row else ""

    def _waits(self, session_id: str) -> int:
        with self._db.session_rows(session_id, "queue") as rows:
            return len(rows)

    def _drop(self, turn_id: str, outcome: str) -> None:
        """Tell those who watch a message that waits that it will not be answered now."""
        if turn := self._queued.pop(turn_id, None):
            turn.end(outcome)
            turn.finish()

    def _begin(self, turn: Turn, parent: str, text: str | None, model: str, chosen: Row) -> None:
        """Store the messages of a turn below ``parent``, durably, then let it run. Raises StorageError, BadRequest."""
        self._memory.note(turn.owner, text or "")
        session = self._db.session(turn.session_id)
        # Not at the end: a list whose order changes then is clicked amiss.
        fields: Row = {"running": turn.id, "updated_at": time.time()}
        if text is not None:
            fields["turns"] = session["turns"] + 1
            if session["auto_title"] and not session["turns"]:
                fields["title"] = first_line(text)
        self._touch(turn.session_id, fields)
        try:
            with self._db.session_rows(turn.session_id, "messages") as rows:
                above = rows.get(parent)
                depth, version = above["depth"] if above else 0, branches.version(rows)
                new = []
                if text is not None:
                    depth, version = depth + 1, version + 1
                    new.append(message("user", text, turn.id, parent=parent, depth=depth, chosen=version))
                    parent = new[0]["id"]
                place: Row = {"parent": parent, "depth": depth + 1, "chosen": version + 1, "options": chosen}
                answer = {"id": turn.message_id, "state": "running", "model": model}
                rows.add(*new, message("assistant", "", turn.id, **answer, **place))
        except StorageError:
            self._touch(turn.session_id, {name: session.get(name) for name in fields})
            raise
        turn.options = chosen
        self._launch(turn, model, parent)

    def _touch(self, session_id: str, fields: Row) -> None:
        """Change a session's row, at once to who looks and within CHECKPOINT_SECONDS on the medium."""
        self._sessions.touch(session_id, fields)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        await asyncio.sleep(CHECKPOINT_SECONDS)
        self._flushing = None
        try:
            await asyncio.to_thread(self._db.flush)
        except StorageError as error:  # it goes with the next change for which there is room
            log.warning("%s", error)

    def _next(self, session_id: str) -> None:
        """Begin the answer to the message that waits longest, if nothing runs."""
        if self._closing or session_id in self._active:
            return
        try:
            if self._db.session(session_id)["undo_until"] is not None:
                return
            with self._db.session_rows(session_id, "queue") as rows:
                waiting = rows.all()
                if not waiting:
                    return
                row = waiting[0]
                turn = self._queued.pop(row["id"], None)
                if turn is None:  # it waits since an earlier run of the service
                    owner = self._db.session(session_id)["owner"]
                    turn = Turn(session_id, owner, row["message_id"], row["id"])
                try:
                    self._begin(turn, self._tip_id(session_id), row["content"], row["model"], row["options"])
                except LlmsvcError as error:
                    turn.end("failed", error)
                    turn.finish()
                    raise
                rows.remove(row["id"])
        except LlmsvcError as error:  # it stays where it waits
            log.warning("%s", error)

    def _launch(self, turn: Turn, model: str, question: str) -> None:
        self._active[turn.session_id] = turn
        self._idle.busy()
        task = asyncio.create_task(self._run(turn, model, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _halt(self, turn: Turn) -> None:
        if turn.engine is not None:
            turn.engine.cancel(turn.id)
        else:  # still waiting for its model
            turn.end("stopped")

    async def _run(self, turn: Turn, model: str, question: str) -> None:
        try:
            await self._generate(turn, model, question)
        except LlmsvcError as error:
            turn.end("failed", error)
        except Exception as error:  # stored with the message, so that nobody waits for ever
            log.exception("turn failed")
            turn.end("failed", LlmsvcError(f"The answer failed: {error}"))
        try:
            await self._save(turn, turn.outcome)
            self._touch(turn.session_id, {"running": None})
        except LlmsvcError as error:  # disk full at the end: say so, keep the text on the page
            turn.error = turn.error or error
        finally:
            del self._active[turn.session_id]
            turn.finish()
            try:
                self._after(turn, model)
            finally:
                self._next(turn.session_id)
                self._rest()

    def _after(self, turn: Turn, model: str) -> None:
        """What is done once an answer has ended."""
        event(log, logging.INFO, "turn", **turn.record(), model=model)
        if turn.outcome == "done":
            self._titles.want(turn.session_id, model)
        if turn.outcome in ("done", "stopped"):
            self._summaries.want(turn.session_id, model, options.merged(turn.options))

    def _rest(self) -> None:
        if not self._active and not self._others:
            self._idle.idle()

    async def _generate(self, turn: Turn, model: str, question: str) -> None:
        pooled = await self._model(turn, model)
        if pooled is None:
            return
        try:
            await self._answer(turn, pooled, model, question)
        finally:
            self._pool.release(pooled)

    async def _answer(self, turn: Turn, pooled: PooledModel, model: str, question: str) -> None:
        if turn.outcome:
            return
        if model != self._db.session(turn.session_id)["model"]:
            self._touch(turn.session_id, {"model": model})  # not before: one that fails is no choice to keep
        engine, loaded = pooled.engine, pooled.loaded
        if engine is None or loaded is None:
            raise Unavailable(f"{model} was unloaded. Send the message again to load it.")
        await self._files_read(turn)
        prompt = await asyncio.to_thread(self._prompt, turn, pooled, loaded, question)
        if turn.outcome:
            return
        turn.prompted(prompt)
        deliver = self.crossing.to(turn.receive, model, len(prompt.tokens))
        said: dict[str, Any] = {"group": turn.session_id, "source": prompt.messages, "prompt": prompt.rendered}
        said["budget"] = turn.thought.left(turn.options["thinking_budget"])
        asked = request(turn.id, loaded, prompt.tokens, options.sampling(turn.options), deliver, **said)
        if asked.sampling.constrained:
            await asyncio.to_thread(engine.submit, asked)
        else:
            engine.submit(asked)
        turn.engine = engine
        if turn.outcome:
            engine.cancel(turn.id)
        while not await turn.over(CHECKPOINT_SECONDS):
            try:
                await self._save(turn, "running")
                turn.note = ""
            except StorageError as error:  # the answer goes on; its end is saved if there is room by then
                turn.note = str(error)

    def _prompt(self, turn: Turn, pooled: PooledModel, loaded: LoadedModel, question: str) -> Prompt:
        """On a worker thread, once the model is there, which may bring options of its own. Raises as building does."""
        turn.options = options.merged(self._preferences.brought(pooled.id), turn.options)
        manner = Manner.of(turn.options, loaded.tokenizer)
        begun, speed = (turn.reasoning, turn.text), pooled.engine.reading
        system = turn.options["system"]
        return self._prompts.build(turn.session_id, loaded, system, question, begun, turn.sources, speed, manner)

    async def _files_read(self, turn: Turn) -> None:
        """Wait until the files are read, telling how far they are, or until the turn is stopped."""
        while not turn.outcome and (waiting := self._files.unfinished(turn.session_id)):
            row = waiting[0]
            far = f" {round(100 * row['progress'])} %" if row["pages"] else ""
            more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            turn.tell(f"Reading {row['name']}{far}{more}…")
            await turn.over(0.2)

    async def _model(self, turn: Turn, model: str) -> PooledModel | None:
        """The model, lent to this turn, or None when the turn was stopped while waiting for it."""
        if pooled := self._pool.ready(model):
            return pooled
        waiting = asyncio.ensure_future(self._pool.acquire(model))
        try:
            while not waiting.done() and not turn.outcome:
                pooled = self._pool.get(model)
                turn.tell(f"{pooled.stage}…" if pooled and pooled.state == "loading" else "")
                await asyncio.wait([waiting], timeout=0.2)
            return await waiting if waiting.done() else None
        finally:
            waiting.cancel()

    async def _save(self, turn: Turn, state: str) -> None:
        fields: Row = {
            "content": turn.text,
            "reasoning": turn.reasoning,
            "options": turn.options,
            "state": state,
            "usage": turn.usage,
            "context": turn.context,
            "sources": turn.sources,
            "error": str(turn.error or ""),
        }
        await asyncio.to_thread(self._db.update_message, turn.session_id, turn.message_id, fields)

    def _mark_interrupted(self) -> None:
        """After a crash: what was running keeps its last checkpoint and says that it was cut."""
        for session_id in self._db.unclean | {row["id"] for row in self._db.sessions_with("running")}:
            with suppress(NotFound):
                try:
                    self._mend(self._db.session(session_id))
                except StorageError as error:  # damaged or full: the others work, and it is tried at the next start
                    log.warning("%s", error)

    def _mend(self, session: Row) -> None:
        """Make right what a crash left of a session's messages, and its row, which may know nothing of the last."""
        with self._db.session_rows(session["id"], "messages") as rows:
            for row in rows.find(lambda row: bool(row["state"] == "running")):
                rows.update(row["id"], {"state": "interrupted"})
            turns = rows.count(_asks)
            with self._db.session_rows(session["id"], "queue") as queue:
                for row in queue.all():
                    if row["message_id"] in rows:
                        queue.remove(row["id"])
            fields: Row = {"running": None, "turns": turns}
            if session["auto_title"] and turns and not session["turns"]:
                fields["title"] = first_line(rows.find(_asks)[0]["content"])
        if any(session.get(name) != value for name, value in fields.items()):
            self._db.update_session(session["id"], fields)


def _asks(message: Row) -> bool:
    return bool(message["role"] == "user")
