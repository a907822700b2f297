"""A model on other servers, which stands where an engine of this process stands.

It is asked by OpenAI's API. What those servers do not all know is refused, not left out.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import httpx

from llmsvc.engine.request import FinishReason, GenerationRequest, SamplingParams
from llmsvc.errors import BadRequest, Busy, LlmsvcError, Unavailable
from llmsvc.models.catalogue import REMOTE
from llmsvc.models.loader import LoadedModel
from llmsvc.models.pooled import PooledModel
from llmsvc.models.remote_answer import RemoteAnswer
from llmsvc.models.server import UNKNOWN_WINDOW, Server

log = logging.getLogger(__name__)

FIRST_SECONDS, NEXT_SECONDS = 300.0, 60.0
"""How long a server may be silent before its first token, and between two. One that lost its power closes nothing."""
MOST_REQUESTS = 256
_BYTES_PER_TOKEN = 3.5


class Estimate:
    """Stands where a tokenizer stands, and counts: in most languages so many bytes of UTF-8 are a token."""

    all_special_tokens: tuple[str, ...] = ()

    def __call__(self, text: str, **_: Any) -> dict[str, range]:
        return {"input_ids": range(-int(-len(text.encode()) // _BYTES_PER_TOKEN))}

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], *_: Any, **__: Any) -> str:
        return "".join(f"<|start|>{m['role']}\n{m['content']}<|end|>\n" for m in messages)

    def get_chat_template(self, **_: Any) -> str:
        return ""


def remote_model(model_id: str, loop: asyncio.AbstractEventLoop) -> PooledModel:
    """For the pool. ``follow`` tells it of its servers."""
    pooled = PooledModel(model_id, "none", "remote", remote=True, pinned=True)
    pooled.engine = RemoteEngine(model_id, loop)
    pooled.ready.set_result(pooled)
    return pooled


def follow(pooled: PooledModel, servers: Sequence[Server]) -> None:
    """Take up which servers have the model, and how they are."""
    name = pooled.id.removeprefix(REMOTE)
    window = min((server.models[name] for server in servers if server.models[name]), default=UNKNOWN_WINDOW)
    pooled.loaded = LoadedModel(None, Estimate(), "remote", "", window, 0, False)
    pooled.engine.servers, pooled.engine.window = tuple(servers), window
    good = sum(not server.error for server in servers)
    pooled.stage = f"{good} of {len(servers)} server{'s' * (len(servers) > 1)} answer{'s' * (len(servers) == 1)}"
    pooled.state = "ready" if good else "failed"
    pooled.error = None if good else _nobody(pooled.id)


class RemoteEngine:
    """``submit`` and ``cancel`` may be called from any thread; everything else is done on ``loop``.

    The least busy server is asked. One that fails before its first token is replaced by another one; behind that, the
    answer ends as ``interrupted``, and whoever goes on with it gets another server.
    """

    kv_bytes = cached = 0
    reading = 0.0

    def __init__(self, model_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.servers: tuple[Server, ...] = ()
        self.window = UNKNOWN_WINDOW
        self._id, self._name, self._loop = model_id, model_id.removeprefix(REMOTE), loop
        self._answers: dict[str, tuple[RemoteAnswer, asyncio.Task[None]]] = {}
        self._ended = 0
        self._closed = False

    def submit(self, request: GenerationRequest) -> None:
        """Its events arrive through ``request.deliver``, on the loop's thread.

        Raises BadRequest for what OpenAI's API has not, Busy or Unavailable.
        """
        path, body = self._body(request)
        if self._closed:
            raise Unavailable(f"{self._id} was removed. Choose another model.")
        if len(self._answers) >= MOST_REQUESTS:
            raise Busy("The model is busy with many other requests. Try again in a moment.")
        self._loop.call_soon_threadsafe(self._begin, request, path, body)

    def cancel(self, request_id: str) -> None:
        """End it here and there. Its last event says ``cancelled``."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self._cancel, request_id)

    @property
    def running(self) -> int:
        return sum(answer.tokens > 0 for answer, _ in list(self._answers.values()))

    @property
    def queued(self) -> int:
        """Those that wait for their first token."""
        return len(self._answers) - self.running

    @property
    def tokens(self) -> int:
        """Received since the start."""
        return self._ended + sum(answer.tokens for answer, _ in list(self._answers.values()))

    def close(self) -> None:
        """Cancel everything."""
        for request_id in list(self._answers):
            self.cancel(request_id)
        self._closed = True

    # On the loop

    def _begin(self, request: GenerationRequest, path: str, body: dict[str, Any]) -> None:
        answer = RemoteAnswer(request)
        if self._closed:
            answer.end(FinishReason.CANCELLED)
            return
        task = self._loop.create_task(self._ask_around(answer, path, body))
        self._answers[request.id] = answer, task
        task.add_done_callback(lambda _: self._end(answer, task))

    def _cancel(self, request_id: str) -> None:
        if found := self._answers.get(request_id):
            found[1].cancel()

    def _end(self, answer: RemoteAnswer, task: asyncio.Task[None]) -> None:
        del self._answers[answer.request.id]
        self._ended += answer.tokens
        if task.cancelled():
            answer.end(FinishReason.CANCELLED)
        elif (error := task.exception()) is None:
            answer.end(answer.finish or FinishReason.STOP)
        elif answer.tokens:
            log.warning("an answer of %s was interrupted (%s)", self._id, type(error).__name__)
            answer.end(FinishReason.INTERRUPTED, _lost(error))
        else:
            if not isinstance(error, LlmsvcError):
                log.error("asking for %s failed", self._id, exc_info=error)
                error = _nobody(self._id)
            answer.end(FinishReason.ERROR, error)

    async def _ask_around(self, answer: RemoteAnswer, path: str, body: dict[str, Any]) -> None:
        """One server after the other, until one has begun. Raises what the last one failed with."""
        tried = set[Server]()
        failure: LlmsvcError = _nobody(self._id)
        while server := self._next(tried):
            tried.add(server)
            try:
                return await self._ask(server, answer, path, body)
            except BadRequest:
                raise
            except LlmsvcError as error:
                if answer.tokens:
                    raise
                if isinstance(error, Busy):
                    failure = error
        raise failure

    def _next(self, tried: set[Server]) -> Server | None:
        left = [server for server in self.servers if server not in tried]
        return min(left, key=lambda server: (bool(server.error), server.running), default=None)

    async def _ask(self, server: Server, answer: RemoteAnswer, path: str, body: dict[str, Any]) -> None:
        """Raises LlmsvcError; the server knows by then what is wrong with it."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(FIRST_SECONDS) as silence, server.answer(path, body) as lines:
                async for line in lines:
                    silence.reschedule(clock() + (NEXT_SECONDS if answer.tokens else FIRST_SECONDS))
                    if answer.take(line):
                        return
        except (BadRequest, Busy):
            raise
        except (LlmsvcError, httpx.HTTPError, TimeoutError) as error:
            server.fail(error)
            if answer.finish is None:
                raise Unavailable(str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            server.fail(Unavailable(f"{server.url} answers in another form than OpenAI's API ({error!r})."))
            raise Unavailable("no event of OpenAI's API") from None
        if answer.finish is None:
            raise Unavailable("its connection ended before its answer")

    # What is asked for

    def _body(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        """Path and body. Raises BadRequest."""
        sampling, source = request.sampling, request.source
        _check(sampling)
        body: dict[str, Any] = {
            "model": self._name,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Servers refuse what cannot fit, and end at their window what can.
            "max_tokens": max(1, min(sampling.max_tokens, self.window - len(request.prompt))),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if isinstance(source, str):
            body |= {"prompt": source} | ({} if sampling.logprobs is None else {"logprobs": sampling.logprobs})
            if sampling.json_schema:
                raise BadRequest("A model on another server gives JSON to messages only. Send the prompt as a message.")
            return "/v1/completions", body
        if sampling.json_schema:
            body["response_format"] = _format(sampling.json_schema)
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        body["messages"] = list(source)
        if source and source[-1]["role"] == "assistant":  # llmsvc and llama.cpp go on with it unasked
            body["messages"][-1] = {"role": "assistant", "content": source[-1]["content"].rstrip()}
            body |= {"continue_final_message": True, "add_generation_prompt": False}  # vLLM, SGLang
        return "/v1/chat/completions", body


def _check(sampling: SamplingParams) -> None:
    """Raises BadRequest for what OpenAI's API has not."""
    off = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "regex": ""}
    if wrong := [f"{name} to {value or 'nothing'}" for name, value in off.items() if getattr(sampling, name) != value]:
        raise BadRequest(f"Models on other servers do not take these options: set {', '.join(wrong)}.")


def _format(schema: str) -> dict[str, Any]:
    """``response_format``. Raises BadRequest."""
    try:
        wanted = json.loads(schema)
    except ValueError as error:
        raise BadRequest(f"The JSON schema is no JSON ({error}).") from None
    wanted.pop("x-guidance", None)  # a word to our own engine
    if wanted == {"type": "object"}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}


def _lost(error: BaseException) -> LlmsvcError:
    if isinstance(error, BadRequest | Busy):
        return Unavailable(f"The server that answered broke off: {error} Continue the answer, or ask again.")
    return Unavailable("The server that answered was lost in the middle of it. Continue the answer, or ask again.")


def _nobody(model_id: str) -> Unavailable:
    return Unavailable(
        f"No server that has {model_id.removeprefix(REMOTE)} answers now. Try again in a moment, or choose another "
        "model; the admin sees on the Models page what is wrong."
    )
