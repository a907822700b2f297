"""Answers that belong to no chat: what scripts ask for, with all messages given. Leaving one cancels it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from llmsvc.chat import options
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.tools import OPEN, CallReader, ToolCall, Tools, as_text
from llmsvc.chat.transfer import new_id
from llmsvc.chat.turn import Turn, Watch
from llmsvc.chat.turns import Turns
from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.engine.request import Source, TokenLogprob
from llmsvc.errors import BadRequest, LlmsvcError, TooLong, Unavailable, UnknownModel
from llmsvc.logs import event
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.models.remote import Estimate
from llmsvc.rates import Rates
from llmsvc.store.database import Row

__all__ = ["Answer", "Ask", "Completions", "Piece", "TokenLogprob", "Usage", "encode"]

log = logging.getLogger(__name__)

MOST_CHOICES = 16
"""Answers to one request."""


@dataclass(frozen=True)
class Ask:
    """What is asked for.

    ``messages``: as chat templates take them, ``content`` always text; an answer at their end is continued.
    ``prompts``: raw texts or tokens instead. ``options``: see ``chat.options``; the settings
    stand for what is left out.
    ``logprobs``: how many of the likeliest tokens are reported with each; None reports nothing.
    """

    model: str
    messages: Sequence[Row] = ()
    prompts: Sequence[str | Sequence[int]] = ()
    options: Row = field(default_factory=dict)
    n: int = 1
    logprobs: int | None = None
    tools: Tools = field(default_factory=Tools)


@dataclass(frozen=True)
class Piece:
    """New text or calls of one choice; its last one has a ``finish``: stop, length, tool_calls.

    ``stop``: the stop string that ended it. An empty one says that nothing came for a while.
    """

    choice: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str = ""
    stop: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.logprobs or self.finish)


@dataclass
class Usage:
    """Tokens, grown until the end."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


class Answer(Protocol):
    """What comes of a request."""

    model: str
    session_id: str
    usage: Usage

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """To the end of every choice. Raises LlmsvcError when the answer fails."""


class Completions:
    """Makes answers. Lives on the event loop."""

    def __init__(self, pool: ModelPool, sessions: Sessions, turns: Turns, rates: Rates) -> None:
        self._pool, self._sessions, self._turns, self.rates = pool, sessions, turns, rates

    def ask(self, owner: str, ask: Ask) -> AbstractAsyncContextManager[Answer]:
        """An answer that is cancelled when its context is left. Entering waits for the model.

        Raises BadRequest, TooMany, UnknownModel, TooLong, Busy or Unavailable, with nothing begun.
        """
        return self._ask(owner, ask)

    @asynccontextmanager
    async def _ask(self, owner: str, ask: Ask) -> AsyncIterator[Answer]:
        wanted = ask.n * max(1, len(ask.prompts))
        if not 1 <= wanted <= MOST_CHOICES:
            raise BadRequest(f"One request has 1 to {MOST_CHOICES} answers, not {wanted}. Send several requests.")
        self.rates.take(owner, wanted)
        with self._turns.busy():
            async with self.model(ask.model) as pooled:
                requests = await asyncio.to_thread(self._requests, pooled, ask)
                answer = _Completion(pooled, ask, sum(len(prompt) for prompt, *_ in requests[:: ask.n]))
                try:
                    for prompt, source, sampling in requests:
                        deliver = self._turns.crossing.to(answer.receiver(len(answer.ids)), pooled.id, len(prompt))
                        request = GenerationRequest(new_id(), prompt, sampling, deliver, f"script:{owner}", source)
                        answer.ids.append(request.id)
                        if sampling.constrained:
                            await asyncio.to_thread(answer.engine.submit, request)
                        else:
                            answer.engine.submit(request)
                    yield answer
                finally:
                    answer.cancel()
                    event(log, logging.INFO, "answer", **asdict(answer.usage), owner=owner, model=pooled.id)

    @asynccontextmanager
    async def ask_in(self, owner: str, session_id: str, ask: Ask) -> AsyncIterator[Answer]:
        """The same within a chat: its last message is sent there, and the chat's own history stands for the others.

        ``session_id``: ``new`` for a new chat. The answer is the chat's: leaving it does not stop it.
        Raises as ``turns.start`` does.
        """
        if ask.n > 1 or ask.logprobs is not None or ask.tools.tools or ask.prompts:
            raise BadRequest("In a chat there is one answer, without tools and log-probabilities. Leave these out.")
        if not ask.messages or ask.messages[-1]["role"] != "user":
            raise BadRequest("The last message must be the user's: it is the one that is sent to the chat.")
        await asyncio.to_thread(self.check, ask.model)
        if session_id == "new":
            session_id = self._sessions.create(owner)["id"]
        systems = [m["content"] for m in ask.messages if m["role"] == "system"]
        given = {**ask.options, **({"system": "\n\n".join(systems)} if systems else {})}
        turn = self._turns.start(owner, session_id, ask.messages[-1]["content"], model=ask.model, **given)
        yield _SessionAnswer(self._turns, turn, self._pool.catalogue.entry(ask.model).id)

    def listed(self) -> list[Row]:
        """Models that can be asked: loaded, on the disk or on other servers, and the default. Reads the disk."""
        loaded = {row["id"]: row for row in self._pool.list() if row["state"] in ("ready", "loading", "parked")}
        known = {
            row["id"]: row
            for row in self._pool.catalogue.list()
            if row["local"] or row["default"] or row["source"] == "remote"
        }
        return [
            {"id": id_, "context": {**known.get(id_, {}), **loaded.get(id_, {})}["context"], "loaded": id_ in loaded}
            for id_ in dict.fromkeys([*known, *loaded])
        ]

    def check(self, model: str) -> Row:
        """Its row. Raises UnknownModel for one that is not listed: a request downloads nothing, and reads no other
        folder."""
        for row in self.listed():
            if row["id"] == model:
                return row
        raise UnknownModel(
            f'There is no model "{model[:120]}" on this machine. GET /v1/models lists those that can be asked; '
            "others are loaded on the Models page first."
        )

    @asynccontextmanager
    async def model(self, model: str) -> AsyncIterator[PooledModel]:
        """The loaded model, lent; it is loaded if need be. Raises UnknownModel or Unavailable."""
        pooled = self._pool.ready(model)
        if pooled is None:
            await asyncio.to_thread(self.check, model)
            pooled = await self._pool.acquire(model)
        try:
            yield pooled
        finally:
            self._pool.release(pooled)

    async def count(self, ask: Ask) -> int:
        """The tokens of its prompt. Raises as ``ask`` does."""
        async with self.model(ask.model) as pooled:
            return len((await asyncio.to_thread(self._requests, pooled, ask))[0][0])

    def _requests(self, pooled: PooledModel, ask: Ask) -> list[tuple[tuple[int, ...], Source, SamplingParams]]:
        """Prompt, what it was made of, and sampling of each choice. Raises BadRequest, TooLong."""
        loaded = pooled.loaded
        if loaded is None:
            raise Unavailable(f"{pooled.id} was unloaded. Ask again to load it.")
        chosen = options.merged(self._turns.settings(pooled.id), ask.options)
        if ask.tools.forced:
            chosen["json_schema"] = ask.tools.schema()
        sampling = replace(options.sampling(chosen), logprobs=ask.logprobs)
        raw = [(encode(loaded.tokenizer, given), given if isinstance(given, str) else ()) for given in ask.prompts]
        prompts: list[tuple[tuple[int, ...], Source]] = [*raw] or [_prompt(loaded.tokenizer, ask)]
        for prompt, _ in prompts:
            if len(prompt) >= loaded.window and not pooled.remote:  # there it is an estimate
                raise TooLong(
                    f"This needs {len(prompt):,} tokens, but {pooled.id} reads at most {loaded.window:,}, its answer "
                    "included. Shorten the messages, or choose a model with a longer context."
                )
        seeds = [sampling.seed if sampling.seed is None else (sampling.seed + k) % 2**63 for k in range(ask.n)]
        return [(prompt, source, replace(sampling, seed=seed)) for prompt, source in prompts for seed in seeds]


class _Completion:
    """The choices of one request, as the engine gives them."""

    def __init__(self, pooled: PooledModel, ask: Ask, prompt_tokens: int) -> None:
        self.model, self.session_id, self.engine = pooled.id, "", pooled.engine
        self.usage = Usage(prompt_tokens)
        self.ids: list[str] = []
        self._special = set(pooled.loaded.tokenizer.all_special_tokens) if ask.logprobs is not None else set()  # type: ignore[union-attr]
        self._tools = ask.tools
        self._arrived: list[tuple[int, TokenEvent]] = []
        self._running: set[int] = set()
        self._watch = Watch()

    def receiver(self, choice: int) -> Callable[[TokenEvent], None]:
        """What takes the events of one choice, on the event loop."""
        self._running.add(choice)

        def receive(event: TokenEvent) -> None:
            self._arrived.append((choice, event))
            self._watch.wake()

        return receive

    def cancel(self) -> None:
        """Before its next token, nothing of it runs."""
        for choice in self._running:
            if choice < len(self.ids):
                self.engine.cancel(self.ids[choice])
        self._watch.close()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        readers = {choice: CallReader(self._tools.names) for choice in self._running if self._tools.tools}
        counted = dict.fromkeys(self._running, 0)
        called: set[int] = set()
        while self._running:
            if not await self._watch.wait():
                yield Piece(0)
            arrived, self._arrived = self._arrived, []
            for choice in dict.fromkeys(choice for choice, _ in arrived):
                events = [event for of, event in arrived if of == choice]
                last = events[-1]
                self.usage.completion += last.tokens - counted[choice]
                counted[choice] = last.tokens
                text, calls = "".join(event.text for event in events), list[ToolCall]()
                logprobs = tuple(p for event in events for p in event.logprobs if p.token not in self._special)
                if reader := readers.get(choice):
                    text, calls = reader.push(text)
                finish = ""
                if last.finish_reason is not None:
                    self._running.discard(choice)
                    self.usage.cached = min(self.usage.cached + last.cached_tokens, self.usage.prompt)
                    finish = _finish(last)
                    if reader:
                        more, closing = reader.finish()
                        text, calls = text + more, calls + closing
                if calls:
                    called.add(choice)
                if finish == "stop" and choice in called:
                    finish = "tool_calls"
                if piece := Piece(choice, text, tuple(calls), logprobs, finish, last.stop):
                    yield piece


class _SessionAnswer:
    """The answer of a chat's turn."""

    def __init__(self, turns: Turns, turn: Turn, model: str) -> None:
        self.model, self.session_id, self.usage = model, turn.session_id, Usage()
        self._turns, self._turn = turns, turn

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        turn, shown = self._turn, 0
        async for text, status in self._turns.attach(turn):
            usage = status["usage"]
            names = ("prompt_tokens", "completion_tokens", "cached_tokens")
            self.usage = Usage(*(usage.get(name, 0) for name in names))
            if turn.finished and (turn.state == "failed" or (turn.state == "interrupted" and turn.error)):
                raise turn.error or LlmsvcError("The answer failed. Send the message again.")
            finish = (usage.get("finish_reason") or "stop") if turn.finished else ""
            yield Piece(0, text[shown:], finish="length" if finish == "length" else finish and "stop")
            shown = len(text)


def _finish(event: TokenEvent) -> str:
    """Raises what the answer failed with."""
    if event.error is not None:
        raise event.error
    if event.finish_reason is FinishReason.CANCELLED:
        raise Unavailable("The model was unloaded while it answered. Ask again.")
    return str(event.finish_reason)


def _prompt(tokenizer: Any, ask: Ask) -> tuple[tuple[int, ...], Source]:
    """The messages by the model's chat template, up to where the answer begins; and as they are. Raises BadRequest."""
    import jinja2

    messages, tools, begun = list(ask.messages), ask.tools, ""
    if not messages:
        raise BadRequest("There are no messages. Send at least one.")
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        begun = messages.pop()["content"].rstrip()
    rows = [tool.row() for tool in tools.tools]
    if "tools" not in tokenizer.get_chat_template(tools=rows or None):
        messages, rows = as_text(messages, tools), []
    source = (*messages, *([{"role": "assistant", "content": begun}] if begun else ()))
    try:
        begun += f"{OPEN}\n" if tools.forced and not rows else ""
        rendered = tokenizer.apply_chat_template(messages, rows or None, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError) as error:  # templates refuse what their model was not made for
        raise BadRequest(f"The model's chat template cannot take these messages: {error}") from None
    return encode(tokenizer, rendered + begun, special=False), source


def encode(tokenizer: Any, prompt: str | Sequence[int], special: bool = True) -> tuple[int, ...]:
    """A text or tokens as tokens. Raises BadRequest for what is none."""
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt, add_special_tokens=special)["input_ids"])
    if isinstance(tokenizer, Estimate):
        raise BadRequest("The tokens of a model on another server are not known here. Send the prompt as text.")
    if not all(0 <= token < len(tokenizer) for token in prompt):
        raise BadRequest(f"A token of this model is a number from 0 to {len(tokenizer) - 1}.")
    return tuple(prompt)
