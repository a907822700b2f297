"""The pool over real tiny models: room, leaving and coming back, pins, failures, and nothing left behind."""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import PROMPT, ask
from random_models import save
from transformers import LlamaConfig

from llmsvc.engine import Engine
from llmsvc.errors import BadRequest, Conflict, LlmsvcError, NotFound, Unavailable
from llmsvc.models import pool as pool_module
from llmsvc.models.catalogue import Catalogue
from llmsvc.models.pool import Budget, ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.service import Service
from llmsvc.settings import Settings

pytestmark = pytest.mark.usefixtures("no_kernels")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> list[str]:
    """Models of one shape and different weights."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    made = LlamaConfig(
        vocab_size=len(tokenizer), **shape, **tokens, max_position_embeddings=1024, tie_word_embeddings=True
    )
    folder = tmp_path_factory.mktemp("five")
    return [str(save(made, folder / f"m{number}", tokenizer, seed=number)) for number in range(5)]


@pytest.fixture
def pool_of(tmp_path: Path) -> Iterator[Callable[..., ModelPool]]:
    """Makes pools, and closes them."""
    pools: list[ModelPool] = []

    def make(**budget: Any) -> ModelPool:
        pools.append(ModelPool(Catalogue(tmp_path / "models"), "cpu", full_weights=True, budget=Budget(**budget)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


class Compiling(Engine):
    """On a GPU, one whose kernels are still being compiled."""

    warm = property(lambda _: False)  # type: ignore[assignment]


@pytest.fixture(params=["stay", "move"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU, which bring what they hold to the host, and those whose models are there."""
    if request.param != "stay":
        kind = Compiling if request.param == "compile" else Engine
        monkeypatch.setattr("llmsvc.engine.Engine", partial(kind, paged=True))


def room_for_two(model: str, tmp_path: Path) -> int:
    """Bytes that hold two such models, and one while the other loads, but not three."""
    row = ModelPool(Catalogue(tmp_path / "models"), "cpu", full_weights=True).forecast(model)
    held = row["weights_bytes"] + 200 * row["kv_bytes_per_token"]
    limit = int(row["peak_bytes"] + 1.05 * held)
    assert limit < 3 * row["weights_bytes"]
    return limit


def states(pool: ModelPool) -> dict[str, str]:
    return {Path(row["id"]).name: row["state"] for row in pool.list()}


async def collect(pool: ModelPool, *arguments: str) -> list[dict[str, Any]]:
    return [row async for row in pool.load(*arguments)]


def test_loading_tells_stages_and_bytes_then_the_model(five: list[str], pool_of: Callable[..., ModelPool]) -> None:
    pool = pool_of()

    async def both() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(collect(pool, five[0]), collect(pool, five[1], "nf4"))

    for rows in asyncio.run(both()):
        *steps, row = rows
        assert {"stage", "done", "total"} == set(steps[0])
        assert any(step["total"] > 10**6 for step in steps)
        assert row["state"] == "ready"
        assert row["memory_bytes"] > 10**6
    assert [row["dtype"] for row in pool.list()] == ["fp32", "nf4"]


def test_one_failing_load_leaves_the_others_serving(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path
) -> None:
    pool = pool_of()
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(five[0]).iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            ask(pool, five[0]), collect(pool, str(broken)), ask(pool, five[1]), return_exceptions=True
        )

    first, failed, second = asyncio.run(all_of_them())
    assert isinstance(failed, LlmsvcError)
    assert first[0]
    assert second[0]
    assert states(pool) == {"m0": "ready", "m1": "ready", "broken": "failed"}


def test_a_load_can_be_cancelled_at_any_stage(five: list[str], pool_of: Callable[..., ModelPool]) -> None:
    pool = pool_of()
    for stage in ("Looking", "Loading", "Starting"):
        reached, go_on = threading.Event(), threading.Event()

        def wait(pooled: Any, stage: str = stage, reached: Any = reached, go_on: Any = go_on) -> None:
            if pooled.stage.startswith(stage) and not reached.is_set():
                reached.set()
                go_on.wait(30)

        pool._listeners[:] = [wait]
        pooled = pool.request(five[0])
        assert reached.wait(60), stage
        pool.unload(five[0])
        go_on.set()
        with pytest.raises(Unavailable, match="was unloaded"):
            pooled.ready.result(30)
        assert pool.list() == []
    pool._listeners.clear()
    assert asyncio.run(ask(pool, five[0]))[0]


@pytest.mark.usefixtures("engines")
def test_the_one_used_longest_ago_makes_room_and_comes_back_as_it_was(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path
) -> None:
    pool = pool_of(memory=room_for_two(five[0], tmp_path))

    async def swap() -> None:
        first = await ask(pool, five[0])
        await ask(pool, five[1])
        assert pool.forecast(five[2])["evicts"] == [five[0]]
        await ask(pool, five[2])
        assert states(pool) == {"m0": "parked", "m1": "ready", "m2": "ready"}
        assert pool.usage()["used"] <= pool.usage()["limit"]
        again, cached = await ask(pool, five[0])
        assert states(pool) == {"m0": "ready", "m1": "parked", "m2": "ready"}
        assert again == first[0]
        assert cached >= len(PROMPT) - 1

    asyncio.run(swap())


@pytest.mark.usefixtures("engines")
def test_without_room_for_parked_ones_a_model_is_loaded_anew(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path
) -> None:
    pool = pool_of(memory=room_for_two(five[0], tmp_path), parked=1)

    async def swap() -> None:
        first = await ask(pool, five[0])
        await ask(pool, five[1])
        await ask(pool, five[2])
        assert states(pool) == {"m1": "ready", "m2": "ready"}
        assert await ask(pool, five[0]) == first

    asyncio.run(swap())


def test_a_parked_model_rather_loses_its_oldest_text_than_goes(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path
) -> None:
    row = pool_of().forecast(five[0])
    one_text = row["weights_bytes"] + 150 * row["kv_bytes_per_token"]
    pool = pool_of(memory=room_for_two(five[0], tmp_path), parked=one_text)
    newer = PROMPT[::-1]

    async def swap() -> None:
        await ask(pool, five[0])
        first = await ask(pool, five[0], newer)
        await ask(pool, five[1])
        await ask(pool, five[2])
        assert states(pool) == {"m0": "parked", "m1": "ready", "m2": "ready"}
        assert pool.usage()["parked"] <= one_text
        again, cached = await ask(pool, five[0], newer)
        assert again == first[0]
        assert cached >= len(newer) - 1
        assert (await ask(pool, five[0]))[1] < 10

    asyncio.run(swap())


def test_a_model_that_comes_keeps_the_room_that_was_left(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path
) -> None:
    """A cache may grow into what is left, but not into what another model was given since."""
    pool = pool_of(memory=room_for_two(five[0], tmp_path))
    prompts = [tuple((n * 13 + k) % 290 + 5 for k in range(400)) for n in range(20)]

    async def talk() -> None:
        await ask(pool, five[0])
        await ask(pool, five[1])
        for model in five[:2]:
            for prompt in prompts:
                await ask(pool, model, prompt)

    asyncio.run(talk())
    assert states(pool) == {"m0": "ready", "m1": "ready"}
    token = pool.forecast(five[0])["kv_bytes_per_token"]
    over = pool.usage()["used"] - pool.usage()["limit"]
    assert over <= 1024 * token  # one text of the window is cached even where there is no room


def test_pinned_and_answering_models_stay(five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path) -> None:
    pool = pool_of(memory=room_for_two(five[0], tmp_path))

    async def crowd() -> None:
        loop, waits = asyncio.get_running_loop(), asyncio.Event()
        pool.on_progress(lambda p: p.stage == "Waiting for memory" and loop.call_soon_threadsafe(waits.set))
        await ask(pool, five[0])
        pool.pin(five[0])
        in_use = await pool.acquire(five[1])
        waiting = asyncio.ensure_future(ask(pool, five[2]))
        await waits.wait()
        assert not pool.forecast(five[3])["fits"]
        assert states(pool)["m1"] == "ready"
        pool.release(in_use)
        await waiting
        assert states(pool) == {"m0": "ready", "m1": "parked", "m2": "ready"}
        assert pool.pin(five[0], False)["pinned"] is False
        await ask(pool, five[1])
        assert states(pool)["m0"] == "parked"

    asyncio.run(crowd())


def test_a_model_that_never_fits_says_so(five: list[str], pool_of: Callable[..., ModelPool]) -> None:
    pool = pool_of(memory=10**6)
    assert not pool.forecast(five[0])["fits"]
    with pytest.raises(Unavailable, match=r"Choose a smaller model, int8 or nf4, or start with more --memory"):
        asyncio.run(ask(pool, five[0]))


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("engines", ["stay", "move", "compile"], indirect=True)
def test_a_model_in_constant_use_lets_another_one_in(
    five: list[str], pool_of: Callable[..., ModelPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "PATIENCE_SECONDS", 0.3)
    row = ModelPool(Catalogue(tmp_path / "models"), "cpu", full_weights=True).forecast(five[0])
    pool = pool_of(memory=int(row["peak_bytes"] + 0.1 * row["weights_bytes"]))  # one at a time
    swaps: list[str] = []
    pool.on_progress(lambda pooled: swaps.append(pooled.id) if pooled.state == "parked" else None)

    async def crowd() -> None:
        async def user(model: str, requests: int) -> None:
            for _ in range(requests):
                await ask(pool, model, tokens=4)

        await ask(pool, five[0])
        users = [user(five[number % 2], 12) for number in range(8)]  # at any time some want one, some the other
        await asyncio.gather(*users)

    asyncio.run(crowd())
    assert 1 <= len(swaps) < 48  # of 96 requests; one swap for each would be a new one at every message


def test_asking_for_another_quantization_loads_anew_unless_in_use(
    five: list[str], pool_of: Callable[..., ModelPool]
) -> None:
    pool = pool_of()

    async def change() -> None:
        in_use = await pool.acquire(five[0])
        with pytest.raises(Conflict, match="in use"):
            await collect(pool, five[0], "int8")
        pool.release(in_use)
        assert (await collect(pool, five[0], "int8"))[-1]["quantization"] == "int8"
        await ask(pool, five[0])
        assert pool.list()[0]["quantization"] == "int8"

    asyncio.run(change())


def test_idle_models_are_unloaded_unless_pinned(five: list[str], pool_of: Callable[..., ModelPool]) -> None:
    pool = pool_of(idle_seconds=0.001)

    async def leave() -> None:
        for model in five[:2]:
            await ask(pool, model)
        pool.pin(five[1])
        in_use = await pool.acquire(five[2])
        await asyncio.to_thread(pool.tidy)
        assert states(pool) == {"m1": "ready", "m2": "ready"}
        pool.release(in_use)

    asyncio.run(leave())


def test_a_model_may_have_a_shorter_context_and_stay_longer(five: list[str], tmp_path: Path) -> None:
    habits = {five[0]: {"context": 200}, five[1]: {"keep_alive": -1}, five[2]: {"context": 10**6, "keep_alive": 60}}
    budget, own = Budget(idle_seconds=1e-9), lambda model: habits.get(model, {})
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu", full_weights=True, budget=budget, habits=own)

    async def leave() -> None:
        for model in five[:3]:
            await ask(pool, model)
        assert [row["context"] for row in pool.list()] == [200, 1024, 1024]
        with pytest.raises(BadRequest, match="reads at most 200"):
            await ask(pool, five[0], tuple(range(40, 300)))
        pool.tidy()
        assert states(pool) == {"m1": "ready", "m2": "ready"}

    try:
        asyncio.run(leave())
    finally:
        pool.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_unloading_leaves_no_thread_no_file_and_no_tensors(five: list[str], pool_of: Callable[..., ModelPool]) -> None:
    import torch

    pool = pool_of()

    def cycle() -> tuple[set[str], int, int]:
        for model in five[:4]:
            asyncio.run(ask(pool, model))
        for model in five[:4]:
            pool.unload(model)
        import gc

        names = {thread.name for thread in threading.enumerate()}
        gc.unfreeze()  # or they would not be counted
        tensors = sum(1 for thing in gc.get_objects() if torch.is_tensor(thing))
        gc.freeze()  # or all later tests would stop for collections
        return names, descriptors(), tensors

    first = cycle()
    for _ in range(3):
        last = cycle()
    assert last[0] <= first[0]
    assert not {name for name in last[0] if name in ("engine", "load", "warmup")}
    assert last[1] <= first[1]
    assert last[2] <= first[2]
    with pytest.raises(NotFound):
        pool.unload(five[0])


@pytest.mark.usefixtures("engines")
def test_random_requests_under_a_budget_for_two_of_five(
    five: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Chats never fail, and no model goes while it answers, whatever is loaded, asked for and unloaded meanwhile."""
    requests, dice = request.config.getoption("--requests"), random.Random(7)
    settings = Settings(
        data_dir=tmp_path / "data",
        model=five[0],
        no_compile=True,
        full_weights=True,
        memory=room_for_two(five[0], tmp_path),
    )
    service = Service(settings)
    interrupted: list[str] = []
    over: list[int] = []

    def watch(pooled: Any) -> None:
        if pooled.state == "parked" and pooled.answering:
            interrupted.append(pooled.id)

    async def one(number: int, sessions: list[str]) -> None:
        kind = dice.choices(["chat", "load", "unload", "pin"], [7, 1, 1, 1])[0]
        model = dice.choice(five)
        row = service.pool.get(model)
        if kind == "load":
            await collect(service.pool, model)
        elif kind == "pin" and row is not None:
            with service.pool._changed:  # what finds one that is pinned meanwhile would rightly be refused
                service.pool.pin(model)
                service.pool.pin(model, False)
        elif (
            kind == "unload"
            and row is not None
            and row.state in ("ready", "parked")
            and not (row.answering or row.waiters)
        ):
            service.pool.unload(model)  # at once: nobody may ask for it in between
        else:
            turn = service.turns.start("local", sessions[number % len(sessions)], "Hello", model=model, max_tokens=4)
            async for _ in service.turns.attach(turn):
                pass
            assert turn.state in ("done", "failed"), turn.state
            assert turn.error is None, turn.error
        usage = service.pool.usage()
        over.append(usage["used"] - usage["limit"])

    async def run() -> None:
        service.pool.on_progress(watch)
        sessions = [service.sessions.create("local")["id"] for _ in range(8)]
        numbers = iter(range(requests))

        async def user(place: int) -> None:
            for _ in numbers:
                await one(place, [sessions[place]])

        await asyncio.gather(*(user(place) for place in range(8)))
        await service.stop()

    asyncio.run(run())
    assert interrupted == []
    # Each model may always cache one text of its window, or its chats would begin anew with every message.
    token = service.pool.forecast(five[0])["kv_bytes_per_token"]
    assert max(over) <= 2 * 1024 * token


def test_a_download_tells_how_fast_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("llmsvc.models.pooled.time", SimpleNamespace(monotonic=lambda: now))
    pooled = PooledModel("a/b", "none", "cpu")
    told = []
    for second in range(12):
        now = 100.0 + second
        pooled.tell("Downloading a/b", (second if second < 6 else 6) * 3_000_000, 100_000_000)
        told.append(pooled.row()["bytes_per_second"])
    assert told[:7] == [0] + [3_000_000] * 6
    assert told[7:] == [2_400_000, 1_800_000, 1_200_000, 600_000, 0]  # it stands still
    pooled.tell("Verifying the checksum", 50_000_000, 100_000_000)
    assert pooled.row()["bytes_per_second"] == 0
