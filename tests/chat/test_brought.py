"""Chats of a service in this process: what a model brings, what is cut in its reasoning, what a file brings along."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from thinker import ANSWER, THOUGHT, made, thinking_tokenizer

from llmsvc.chat.thought import Thought
from llmsvc.chat.turn import Turn
from llmsvc.errors import BadRequest
from llmsvc.http import sse
from llmsvc.service import Service

OWNER = "local"
Talk = Callable[[Service], Awaitable[None]]


@pytest.fixture
def within(data_dir: Path, tmp_path: Path, model_dir: Path) -> Callable[[Talk], None]:
    """Runs a talk with a service of its own, whose model thinks."""

    def run(talk: Talk) -> None:
        async def whole() -> None:
            service = made(["--data-dir", str(tmp_path / "data")], thinking_tokenizer(str(model_dir)))
            try:
                async with asyncio.timeout(60):
                    await talk(service)
            finally:
                await service.stop()

        asyncio.run(whole())

    return run


async def ended(service: Service, turn: Turn) -> Turn:
    async for _ in service.turns.attach(turn):
        pass
    return turn


def asked(service: Service) -> str:
    """The prompt that the model had last."""
    engine: Any = service.pool.get(service.default_model).engine
    return str(service.pool.get(service.default_model).loaded.tokenizer.decode(engine.asked[-1].prompt))


def imported(service: Service, **answer: Any) -> str:
    rows = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "", **answer}]
    return str(service.sessions.import_(OWNER, json.dumps({"title": "x", "messages": rows}))["id"])


def test_a_chat_has_the_system_prompt_that_its_model_brings(within: Any) -> None:
    async def talk(service: Service) -> None:
        system = service.catalogue.entry(service.default_model).system
        assert system
        session = service.sessions.create(OWNER)["id"]
        turn = await ended(service, service.turns.start(OWNER, session, "Is it so?"))
        assert asked(service).startswith(f"<|im_start|>system\n{system}")
        with_it = turn.context["system"]
        service.preferences.set_session_settings(OWNER, session, {"system": "No."})
        turn = await ended(service, service.turns.start(OWNER, session, "Is it so?"))
        assert asked(service).startswith("<|im_start|>system\nNo.")
        assert turn.context["system"] < with_it

    within(talk)


def test_a_question_whose_answer_was_cut_in_its_reasoning_is_remembered(within: Any) -> None:
    async def talk(service: Service) -> None:
        session = service.sessions.create(OWNER)["id"]
        turn = await ended(service, service.turns.start(OWNER, session, "Is the FIRST so?", max_tokens=5))
        assert (turn.text, bool(turn.reasoning)) == ("", True)
        turn = await ended(service, service.turns.start(OWNER, session, "And so?"))
        assert "FIRST" in asked(service)
        assert turn.context["turns_used"] == 1

    within(talk)


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": {"thinking_seconds": "x", "reasoning_tokens": [1], "completion_tokens": 10**400}},
        {"usage": {"finish_reason": {}, "tokens_per_second": None, "completion_tokens": -5}},
        {"options": {"temperature": "hot", "thinking": ["x"], "max_tokens": 90}},
        {"context": {"turns_left_out": "x", "left_out": 5, "files": {}}, "sources": [5, {"name": "a"}]},
    ],
)
def test_an_answer_goes_on_whatever_a_file_says_of_it(within: Any, wrong: dict[str, Any]) -> None:
    async def talk(service: Service) -> None:
        from llmsvc.ui import chat

        session = imported(service, reasoning=THOUGHT[:20], state="interrupted", **wrong)
        assert chat.window(service.sessions.window(OWNER, session, 24)["messages"])
        turn = await ended(service, service.turns.resume(OWNER, session))
        assert (turn.state, turn.reasoning, turn.text) == ("done", THOUGHT, ANSWER)
        assert service.turns.active(session) is None

    within(talk)


@pytest.mark.parametrize(
    "text", ['{"messages": [], "title": "\\ud83d"}', "## User\n\n\ud83d", '{"messages": [], "a": NaN}']
)
def test_a_file_that_cannot_be_stored_is_refused(within: Any, text: str) -> None:
    async def talk(service: Service) -> None:
        with pytest.raises(BadRequest):
            service.sessions.import_(OWNER, text)

    within(talk)


def test_a_turn_that_cannot_be_counted_nor_saved_ends_all_the_same(within: Any) -> None:
    async def talk(service: Service) -> None:
        session = service.sessions.create(OWNER)["id"]
        turn = service.turns.start(OWNER, session, "Is it so?")
        turn.thought = Thought(0, "long")  # type: ignore[arg-type]
        async for _ in service.turns.follow(turn):
            pass
        assert (turn.state, service.turns.active(session)) == ("failed", None)
        assert (await ended(service, service.turns.start(OWNER, session, "And so?"))).text == ANSWER

    within(talk)


def test_an_old_answer_that_is_changed_has_its_reasoning_once(within: Any) -> None:
    async def talk(service: Service) -> None:
        session = imported(service, content="<think>\nsecret\n</think>\n\nYes.")
        old = service.sessions.get(OWNER, session)["messages"][-1]
        for text, reasoning in ((old["content"].replace("Yes", "No"), "secret"), ("No.", "secret")):
            service.turns.edit(OWNER, session, old["id"], text)
            new = service.sessions.get(OWNER, session)["messages"][-1]
            assert (new["reasoning"], new["content"]) == (reasoning, "No.")

    within(talk)


def test_reasoning_that_is_gone_is_taken_back_from_who_has_it() -> None:
    turn = Turn("s", "o", "m")
    turn.go_on({"usage": {}, "content": "", "reasoning": THOUGHT, "sources": []}, remote=True)
    assert turn.reasoning == ""  # another server begins anew
    gone = {"reasoning_offset": 0, "reasoning_length": 0, "reasoning": ""}
    assert sse.placed(turn, (0, 9), thought=True) == {"offset": 0, "length": 0, "text": "", **gone}
    turn.reasoning = "New"
    assert sse.placed(turn, (3, 9))["reasoning_offset"] == 3
