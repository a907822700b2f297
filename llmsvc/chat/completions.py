"""Answers that belong to no chat: what scripts ask for, with all messages given. Leaving one cancels it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from llmsvc.chat import options
from llmsvc.chat.asking import Manner, bound_to_calls, reader, rendered, request
from llmsvc.chat.preferences import Preferences
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.thought import Thought, joined, read
from llmsvc.chat.transfer import new_id
from llmsvc.chat.turn import Turn, Watch
from llmsvc.chat.turns import Turns
from llmsvc.engine import FinishReason, SamplingParams, TokenEvent
from llmsvc.engine.request import Source, TokenLogprob
from llmsvc.errors import BadRequest, LlmsvcError, TooLong, Unavailable, UnknownModel
from llmsvc.formats import templates
from llmsvc.formats.calls import as_text
from llmsvc.formats.said import Said
from llmsvc.formats.templates import Rendered
from llmsvc.formats.tools import ToolCall, Tools
from llmsvc.logs import event
from llmsvc.models.loader import LoadedModel
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.models.remote import Estimate
from llmsvc.rates import Rates
from llmsvc.store.database import Row

__all__ = ["Answer", "Ask", "Completions", "Piece", "TokenLogprob", "Usage", "encode"]

log = logging.getLogger(__name__)

_CUT = ("length", "repetition")
"""Ends that are none: an API's client is to know that there is more."""
MOST_CHOICES = 16
"""Answers to one request."""


@dataclass(frozen=True)
class Ask:
    """What is asked for.

    ``messages``: as chat templates take them, ``content`` always text; an answer at their end is continued.
    ``prompts``: raw texts or tokens instead. ``options``: see ``chat.options``; the settings stand for what is left
    out. ``variables``: for the template. ``parallel``: an answer may have several calls. ``logprobs``: how many of the
    likeliest tokens are reported with each; None reports nothing.
    """

    model: str
    messages: Sequence[Row] = ()
    prompts: Sequence[str | Sequence[int]] = ()
    options: Row = field(default_factory=dict)
    n: int = 1
    logprobs: int | None = None
    tools: Tools = field(default_factory=Tools)
    variables: Row = field(default_factory=dict)
    parallel: bool = True


@dataclass(frozen=True)
class Piece:
    """New text, reasoning or calls of one choice; its last one has a ``finish``: stop, length, tool_calls.

    ``stop``: the stop string that ended it. An empty one says that nothing came for a while.
    """

    choice: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str = ""
    stop: str = ""
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.logprobs or self.finish)


@dataclass
class Usage:
    """Tokens, grown until the end."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    """Of the completion."""


class Answer(Protocol):
    """What comes of a request."""

    model: str
    session_id: str
    usage: Usage

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """To the end of every choice. Raises LlmsvcError when the answer fails."""


class Completions:
    """Makes answers. Lives on the event loop."""

    def __init__(
        self, pool: ModelPool, sessions: Sessions, turns: Turns, preferences: Preferences, rates: Rates
    ) -> None:
        self._pool, self._sessions, self._turns, self.rates = pool, sessions, turns, rates
        self._preferences = preferences

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
                answer = _Completion(pooled, ask, sum(len(one.tokens) for one in requests[:: ask.n]))
                try:
                    for one in requests:
                        await self._submit(answer, one, f"script:{owner}")
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
        if ask.n > 1 or ask.logprobs is not None or ask.tools.tools or ask.prompts or ask.variables:
            raise BadRequest(
                "In a chat there is one answer, without tools, log-probabilities and chat_template_kwargs. Leave these "
                "out."
            )
        if not ask.messages or ask.messages[-1]["role"] != "user":
            raise BadRequest("The last message must be the user's: it is the one that is sent to the chat.")
        await asyncio.to_thread(self.check, ask.model)
        options.check_remote(self._pool.catalogue.entry(ask.model).id, ask.options)
        if session_id == "new":
            session_id = self._sessions.create(owner)["id"]
        systems = [m["content"] for m in ask.messages if m["role"] == "system"]
        said = {**ask.options, **({"system": "\n\n".join(systems)} if systems else {})}
        if (modes := self._preferences.modes(ask.model)) is not None and "thinking" in said:
            said["thinking"] = options.nearest(said["thinking"], modes)
        turn = self._turns.start(owner, session_id, ask.messages[-1]["content"], model=ask.model, **said)
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
            return len((await asyncio.to_thread(self._requests, pooled, ask))[0].tokens)

    async def _submit(self, answer: "_Completion", wanted: "_Wanted", group: str) -> None:
        """Raises Busy, or BadRequest for a schema that cannot be followed."""
        receive = answer.receiver(wanted.prompt)
        deliver = self._turns.crossing.to(receive, answer.model, len(wanted.tokens))
        asked = request(
            new_id(),
            answer.loaded,
            wanted.tokens,
            wanted.sampling,
            deliver,
            group=group,
            source=wanted.source,
            prompt=wanted.prompt,
            budget=wanted.budget,
        )
        answer.ids.append(asked.id)
        if asked.sampling.constrained:
            await asyncio.to_thread(answer.engine.submit, asked)
        else:
            answer.engine.submit(asked)

    def _requests(self, pooled: PooledModel, ask: Ask) -> list["_Wanted"]:
        """One for each choice. Raises BadRequest, TooLong."""
        loaded = pooled.loaded
        if loaded is None:
            raise Unavailable(f"{pooled.id} was unloaded. Ask again to load it.")
        options.check_remote(pooled.id, ask.options)
        chosen = options.merged(self._preferences.settings(pooled.id), ask.options)
        sampling = replace(options.sampling(chosen), logprobs=ask.logprobs)
        wanted = [
            _Wanted(encode(loaded.tokenizer, raw), raw if isinstance(raw, str) else (), sampling) for raw in ask.prompts
        ] or [_chat(pooled, loaded, ask, chosen, sampling)]
        for one in wanted:
            if len(one.tokens) >= loaded.window and not pooled.remote:  # there it is an estimate
                raise TooLong(
                    f"This needs {len(one.tokens):,} tokens, but {pooled.id} reads at most {loaded.window:,}, its "
                    "answer included. Shorten the messages, or choose a model with a longer context."
                )
        seed = sampling.seed
        seeds = [seed if seed is None else (seed + k) % 2**63 for k in range(ask.n)]
        return [replace(one, sampling=replace(one.sampling, seed=seed)) for one in wanted for seed in seeds]


@dataclass(frozen=True)
class _Wanted:
    """What one choice is asked for. ``prompt``: of messages; ``budget``: tokens of reasoning."""

    tokens: tuple[int, ...]
    source: Source
    sampling: SamplingParams
    prompt: Rendered | None = None
    budget: int = 0


class _Completion:
    """The choices of one request, as the engine gives them."""

    def __init__(self, pooled: PooledModel, ask: Ask, prompt_tokens: int) -> None:
        assert pooled.loaded is not None
        self.model, self.session_id, self.engine, self.loaded = pooled.id, "", pooled.engine, pooled.loaded
        self.usage = Usage(prompt_tokens)
        self.ids: list[str] = []
        with_logprobs = ask.logprobs is not None
        self._special = set(self.loaded.tokenizer.all_special_tokens) if with_logprobs else set[str]()
        self._ask = ask
        self._arrived: list[tuple[int, TokenEvent]] = []
        self._running: dict[int, _Choice] = {}
        self._watch = Watch()

    def receiver(self, prompt: Rendered | None) -> Callable[[TokenEvent], None]:
        """What takes the events of the next choice, on the event loop."""
        number = len(self.ids)
        self._running[number] = _Choice(number, prompt, self._ask, self._special)

        def receive(event: TokenEvent) -> None:
            self._arrived.append((number, event))
            self._watch.wake()

        return receive

    def cancel(self) -> None:
        """Before its next token, nothing of it runs."""
        for number in self._running:
            if number < len(self.ids):
                self.engine.cancel(self.ids[number])
        self._watch.close()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        while self._running:
            if not await self._watch.wait():
                yield Piece(0)
            arrived, self._arrived = self._arrived, []
            for number in dict.fromkeys(number for number, _ in arrived):
                piece = self._running[number].take([event for of, event in arrived if of == number], self.usage)
                if piece.finish:
                    del self._running[number]
                if piece:
                    yield piece


class _Choice:
    """One choice: its events in, its pieces out."""

    def __init__(self, number: int, prompt: Rendered | None, ask: Ask, special: Container[str]) -> None:
        self._number, self._parallel, self._special = number, ask.parallel, special
        self._reader = None if prompt is None else reader(prompt, ask.tools.tools)
        self._thought = Thought()
        self._thought.begin(prompt is not None and prompt.opened)
        self._tokens = self._reasoned = 0
        self._called = False

    def take(self, events: Sequence[TokenEvent], usage: Usage) -> Piece:
        """What they say, counted in ``usage``. Raises what the answer failed with."""
        last, said, logprobs = events[-1], Said(), list[TokenLogprob]()
        for one in events:
            new = read(self._reader, one)
            self._thought.take(new, one.tokens, 0.0)
            if not self._thought.running:
                logprobs += [token for token in one.logprobs if token.token not in self._special]
            said = joined(said, new)
        usage.completion += last.tokens - self._tokens
        usage.reasoning += self._thought.tokens - self._reasoned
        self._tokens, self._reasoned = last.tokens, self._thought.tokens
        calls = said.calls
        if not self._parallel:
            calls = () if self._called else calls[:1]
        self._called = self._called or bool(calls)
        finish = ""
        if last.finish_reason is not None:
            usage.cached = min(usage.cached + last.cached_tokens, usage.prompt)
            finish = "tool_calls" if _finish(last) == "stop" and self._called else _finish(last)
        return Piece(self._number, said.text, calls, tuple(logprobs), finish, last.stop, said.reasoning)


class _SessionAnswer:
    """The answer of a chat's turn."""

    def __init__(self, turns: Turns, turn: Turn, model: str) -> None:
        self.model, self.session_id, self.usage = model, turn.session_id, Usage()
        self._turns, self._turn = turns, turn

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        turn, shown, thought = self._turn, 0, 0
        async for text, status in self._turns.attach(turn):
            usage = status["usage"]
            names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
            self.usage = Usage(*(usage.get(name, 0) for name in names))
            if turn.finished and (turn.state == "failed" or (turn.state == "interrupted" and turn.error)):
                raise turn.error or LlmsvcError("The answer failed. Send the message again.")
            finish = (usage.get("finish_reason") or "stop") if turn.finished else ""
            finish = "length" if finish in _CUT else finish and "stop"
            yield Piece(0, text[shown:], finish=finish, reasoning=turn.reasoning[thought:])
            shown, thought = len(text), len(turn.reasoning)


def _finish(event: TokenEvent) -> str:
    """Raises what the answer failed with."""
    if event.error is not None:
        raise event.error
    if event.finish_reason is FinishReason.CANCELLED:
        raise Unavailable("The model was unloaded while it answered. Ask again.")
    return "length" if event.finish_reason in _CUT else str(event.finish_reason)


def _chat(pooled: PooledModel, loaded: LoadedModel, ask: Ask, chosen: Row, sampling: SamplingParams) -> _Wanted:
    """The messages by the model's chat template, up to where the answer begins. Raises BadRequest."""
    messages, tools, begun = list(ask.messages), ask.tools, Row()
    if not messages:
        raise BadRequest("There are no messages. Send at least one.")
    if pooled.remote and ask.variables:
        raise BadRequest("A model on another server takes no chat_template_kwargs. Leave them out.")
    if chosen["system"].strip() and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": chosen["system"]})
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        begun = messages.pop()
    words = begun.get("content", "").rstrip()
    reasoning = "" if pooled.remote else begun.get("reasoning", "")  # other servers go on with words only
    if tools.forced:
        chosen = {**chosen, "json_schema": "", "regex": ""}
    manner = Manner.of(chosen, loaded.tokenizer, ask.variables)
    prompt = rendered(loaded.tokenizer, messages, manner, tools=tools.tools, answer=words, reasoning=reasoning)
    if tools.forced:
        sampling = bound_to_calls(sampling, prompt, tools, pooled.remote)
    source = as_text(messages, tools) if pooled.remote else messages
    continued = [{"role": "assistant", "content": words}] if words else []
    tokens = templates.encode(loaded.tokenizer, prompt)
    return _Wanted(tokens, (*source, *continued), sampling, prompt, chosen["thinking_budget"])


def encode(tokenizer: Any, prompt: str | Sequence[int], special: bool = True) -> tuple[int, ...]:
    """A text or tokens as tokens. Raises BadRequest for what is none."""
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt, add_special_tokens=special)["input_ids"])
    if isinstance(tokenizer, Estimate):
        raise BadRequest("The tokens of a model on another server are not known here. Send the prompt as text.")
    if not all(0 <= token < len(tokenizer) for token in prompt):
        raise BadRequest(f"A token of this model is a number from 0 to {len(tokenizer) - 1}.")
    return tuple(prompt)
