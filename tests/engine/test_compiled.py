"""Compiled decode steps: the same words, kept on the disk, and nothing lost where they cannot be had."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import until
from tiny import SIZE, Collected, kept_kernels, of_4_bits, tiny
from transformers import AutoModelForCausalLM, LlamaConfig

from llmsvc.engine import Engine
from llmsvc.engine.blocks import has_blocks
from llmsvc.engine.compiled import CompiledStep, library_name, ways_of
from llmsvc.engine.int8 import quantize_linears
from llmsvc.engine.kernels import compiler
from llmsvc.engine.slot_runner import SlotRunner
from llmsvc.engine.warmup import Warmup

PROMPTS = {f"p{n}": [(n * 31 + k * 7) % 290 + 5 for k in range(3 + 69 * n)] for n in range(3)}
KINDS = {"one", "chunk", "fill"}


def rounded(name: str = "heads-of-16", seed: int = 0) -> Any:
    model = tiny(name)
    torch.manual_seed(seed)
    if seed:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    quantize_linears(model, kept_kernels())
    return model


pytestmark = pytest.mark.skipif(not compiler(), reason="needs a C++ compiler")


def build(model: Any, libraries: dict[str, Path]) -> None:
    """Compile steps of several kinds as the service does, but at once."""
    with tempfile.TemporaryDirectory() as config:
        model.config.save_pretrained(config)
        command = [sys.executable, "-m", "llmsvc.engine.compiled", config]
        children = [subprocess.Popen([*command, kind, out, *ways_of(model, kind)]) for kind, out in libraries.items()]
        assert [child.wait() for child in children] == [0] * len(children)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has all kinds but one, which the first engine has built by itself."""
    folder, model = tmp_path_factory.mktemp("compiled"), rounded()
    build(model, {kind: folder / library_name(model, kind) for kind in sorted(KINDS - {"one"})})
    return folder


@pytest.fixture(autouse=True)
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a compiled step wherever there is one: on models as tiny as these speed says nothing."""
    monkeypatch.setattr(Warmup, "_is_faster", lambda *_: True)


def said(engine: Engine) -> list[dict[str, str]]:
    """What the engine says to each prompt alone, and to all of them together."""
    collected, texts = Collected(engine), []
    for names in (*([name] for name in PROMPTS), list(PROMPTS)):
        for name in names:
            collected.submit(name, PROMPTS[name])
        texts.append({name: text for name, (text, _) in collected.all(len(names)).items()})
    return texts


PIECES = ((1, 610), (2, 610), (3, 610), (64, 610), (300, 610), (64, 2), (64, 3), (64, 4), (64, 5), (3, 7))
"""Tokens that are cached before a piece, and that it has."""


def said_behind(engine: Engine, cut: int, new: int) -> str:
    """What the engine says to a prompt of which another one left all but ``new`` tokens in the cache."""
    collected = Collected(engine)
    first = [(cut * 13 + n * 11) % 290 + 5 for n in range(cut)]
    collected.submit("before", first, max_tokens=1)
    collected.all(1)
    collected.submit("behind", first + [(n * 17 + new) % 290 + 5 for n in range(new)])
    return collected.all(1)["behind"][0]


def said_beside(engine: Engine) -> dict[str, str]:
    """What the engine says to prompts of which one is still read while the others are answered."""
    collected = Collected(engine)
    for number, length in enumerate((3, 20, 700)):
        tokens = [(n * 29 + number) % 280 + 7 for n in range(length)]
        collected.submit(f"beside {number}", tokens, max_tokens=40)
    return {name: text for name, (text, _) in collected.all(3).items()}


@pytest.mark.parametrize("breaks", [False, True])
def test_prompts_are_read_in_one_pass_with_tokens_of_others(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    engine = Engine(rounded(), tokenizer, window=1024, slots=4)
    try:
        before = said_beside(engine)
    finally:
        engine.close()
    right, mixed = CompiledStep.__call__, []

    def noted(self: CompiledStep, ids: Any, positions: Any, slots: list[int], wanted: Any, *rest: Any) -> torch.Tensor:
        if len(ids) > len(set(slots)) > 1:
            mixed.append(slots)
            if breaks:
                raise RuntimeError("the compiled step failed at Run")
        return right(self, ids, positions, slots, wanted, *rest)

    engine = Engine(rounded(), tokenizer, window=1024, slots=4, compiled=folder)
    try:
        until(lambda: engine.compiled == KINDS)
        monkeypatch.setattr(CompiledStep, "__call__", noted)
        assert said_beside(engine) == before
        assert len(mixed) == 1 if breaks else len(mixed) > 1
        assert engine.compiled == (set() if breaks else KINDS)
    finally:
        engine.close()


def test_a_compiled_step_changes_no_word(folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(rounded(), tokenizer, window=512, slots=3, compiled=folder)
    try:
        before = said(engine)
        until(lambda: engine.compiled == KINDS)
        assert said(engine) == before
        assert engine.compiled == KINDS  # nothing made it give up
    finally:
        engine.close()
    made = {library: library.stat().st_ino for library in folder.glob("*.so")}
    assert len(made) == len(KINDS)

    # The next start finds them on the disk, and lends them other weights of the same shape.
    engine = Engine(rounded(seed=1), tokenizer, window=512, slots=3)
    try:
        other = said(engine)
    finally:
        engine.close()
    monkeypatch.setattr(Warmup, "_agrees", lambda *_: pytest.fail("what was found good is compared again"))
    engine = Engine(rounded(seed=1), tokenizer, window=512, slots=3, compiled=folder)
    try:
        until(lambda: engine.compiled == KINDS)
        assert said(engine) == other != before
    finally:
        engine.close()
    assert {library: library.stat().st_ino for library in folder.glob("*.so")} == made


def test_a_piece_says_the_same_wherever_it_begins(folder: Path, tokenizer: Any) -> None:
    """A prompt is cut at any place: by what is cached already, and by what else is computed."""
    engine = Engine(rounded(), tokenizer, window=2048, slots=3)
    try:
        before = [said_behind(engine, *piece) for piece in PIECES]
    finally:
        engine.close()
    engine = Engine(rounded(), tokenizer, window=2048, slots=3, compiled=folder)
    try:
        until(lambda: engine.compiled == KINDS)
        assert [said_behind(engine, *piece) for piece in PIECES] == before
        assert engine.compiled == KINDS
    finally:
        engine.close()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_token_is_to_the_bit_the_same_in_any_step(folder: Path, tokenizer: Any, compiled: bool) -> None:
    """Read in a piece, behind any cut, or generated alone or in company: so no answer hangs on what was cached."""
    model, tokens = rounded(), [(n * 17) % 290 + 5 for n in range(300)]
    if {ways_of(model, kind)[0] for kind in KINDS} != {"kernel"}:
        pytest.skip("steps multiply in several ways here")
    runner = SlotRunner(model, 3, 512)
    if compiled:
        engine = Engine(model, tokenizer, window=512, slots=3, compiled=folder)
        until(lambda: engine.compiled == KINDS)
        engine.close()
        runner.compiled = {kind: CompiledStep(folder / library_name(model, kind), model) for kind in KINDS}
    steps = dict(runner.compiled)

    @torch.inference_mode()
    def held(slot: int) -> list[torch.Tensor]:
        """What is in the cache, of which then nothing is left."""
        parts = [part[slot, :, : len(tokens)] for layer in runner._cache.layers for part in (layer.keys, layer.values)]
        copies = [part.clone() for part in parts]
        for part in parts:
            part.fill_(torch.nan)
        return copies

    def in_pieces(*cuts: int) -> torch.Tensor:
        for start, end in pairwise((0, *cuts)):
            runner.prefill(0, tokens[start:end], start, 0)
        return runner.prefill(0, tokens[cuts[-1] :], cuts[-1]).clone()  # the next step takes their memory

    def in_steps(slots: tuple[int, ...]) -> torch.Tensor:
        for slot in slots:
            runner.prefill(slot, tokens[:130], 0, 0)
        for n in range(130, len(tokens)):
            logits = runner.decode(dict.fromkeys(slots, tokens[n]), [n] * 4)
        return logits

    def in_company() -> torch.Tensor:
        """With a token of another slot, and another piece."""
        for slot, length in ((0, 100), (1, 200)):
            runner.prefill(slot, tokens[:length], 0, 0)
        pieces = [(0, tokens[100:], 100), (2, tokens[:70], 0)]
        return runner.decode({1: tokens[200]}, [100, 200, 0, 0], pieces)[1:2]

    try:
        (said,), before = in_pieces(256), held(0)
        for slots, again in (
            ((0,), lambda: in_pieces(299)),
            ((0,), lambda: in_pieces(1, 2, 70, 298)),
            *([((0,), in_company)] if compiled else []),
            ((0,), lambda: in_steps((0,))),
            ((0, 1, 2), lambda: in_steps((0, 1, 2))),
        ):
            for slot, logits in zip(slots, again(), strict=True):
                assert torch.equal(logits, said)
                assert all(map(torch.equal, held(slot), before))
        assert runner.compiled == steps
    finally:
        for step in steps.values():
            step.close()


def test_two_models_of_one_architecture_keep_their_logits_apart(folder: Path, tokenizer: Any) -> None:
    """A step's logits lie where those of its last call lay, and two models take one library."""
    models = rounded(), rounded(seed=1)
    engine = Engine(models[0], tokenizer, window=512, slots=3, compiled=folder)
    until(lambda: engine.compiled == KINDS)
    engine.close()
    steps = [CompiledStep(folder / library_name(model, "chunk"), model) for model in models]
    runners = [SlotRunner(model, 3, 512) for model in models]
    try:
        for runner, step in zip(runners, steps, strict=True):
            runner.decode({0: 7, 1: 8}, [0] * 4)
            runner.compiled = {"chunk": step}
            runner.decode({0: 7, 1: 8, 2: 9}, [1] * 4)  # from the next on there is memory
        first = runners[0].decode({0: 5, 1: 6}, [2] * 4)
        before = first.clone()
        second = runners[1].decode({0: 5, 1: 6}, [2] * 4)
        assert torch.equal(first, before)
        assert not torch.equal(first, second)
        again = runners[0].decode({0: 15, 1: 16}, [3] * 4)
        assert again.data_ptr() == first.data_ptr()
        runners[0].decode({0: 15, 1: 16, 2: 17}, [4] * 4)
        assert all("chunk" in runner.compiled for runner in runners)
    finally:
        for step in steps:
            step.close()


def test_a_row_is_summed_alone_as_it_is_among_others(tmp_path: Path) -> None:
    """So wide that a compiler would have several threads add up a single row; some weights have 4 bits, others 8."""
    config = LlamaConfig(**{**SIZE, "hidden_size": 2048, "num_hidden_layers": 1, "head_dim": 16})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for layer in (model.model.layers[0].self_attn.k_proj, model.model.layers[0].mlp.up_proj):
        layer.weight.data = of_4_bits(torch.Generator().manual_seed(0), *layer.weight.shape, 15, -7.5) / 50
    quantize_linears(model, kept_kernels())
    if {ways_of(model, kind)[0] for kind in KINDS} != {"kernel"}:
        pytest.skip("steps multiply in several ways here")
    assert len(model.config.weights_of_4_bits) == (2 if has_blocks() else 0)
    tokens = [(n * 17) % 290 + 5 for n in range(40)]
    runner = SlotRunner(model, 1, 512)
    build(model, {kind: tmp_path / f"{kind}.so" for kind in ("one", "chunk")})
    steps = {kind: CompiledStep(tmp_path / f"{kind}.so", model) for kind in ("one", "chunk")}
    try:
        runner.compiled = dict(steps)
        together = runner.prefill(0, tokens, 0, len(tokens)).clone()
        alone = [runner.prefill(0, [token], n)[0].clone() for n, token in enumerate(tokens)]
        assert torch.equal(torch.stack(alone), together)
    finally:
        for step in steps.values():
            step.close()


def test_a_damaged_library_is_made_again(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    library = tmp_path / library_name(rounded(), "one")
    library.write_bytes(b"\x7fELF" + b"garbage" * 1000)
    engine = Engine(rounded(), tokenizer, window=512, slots=3, compiled=tmp_path)
    try:
        until(lambda: "cannot be used" in caplog.text)
        assert all(said(engine)[-1].values())
    finally:
        engine.close()
    assert not library.exists()


def test_what_compiles_gives_way_and_ends_with_the_engine(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(rounded(), tokenizer, window=512, slots=2, compiled=tmp_path)

    def children() -> list[Path]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if f"{tmp_path}" in (folder / "cmdline").read_text():
                    found.append(folder)
        return found

    def last(child: Path) -> bool:
        """Whether it is the last to be given a core, among processes and among sessions."""
        group = child / "autogroup"
        alone = not group.exists() or group.read_text().rstrip().endswith("nice 19")
        return alone and os.getpriority(os.PRIO_PROCESS, int(child.name)) == 19

    until(children)
    until(lambda: all(map(last, children())))
    engine.close()
    assert children() == []
    assert not {"engine", "warmup"} & {thread.name for thread in threading.enumerate()}
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_compiled_is_not_tried_again(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, asked = tmp_path / "c++", tmp_path / "asked"
    broken.write_text(f"#!/bin/sh\necho >> {asked}\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    caplog.set_level("INFO")
    for number in (1, 2):  # the second time it is only remembered
        asked.unlink(missing_ok=True)
        engine = Engine(rounded(), tokenizer, window=512, slots=2, compiled=tmp_path / "compiled")
        try:
            until(lambda: engine.warm)  # noqa: B023
            assert caplog.text.count("compiling failed") == len(KINDS) * number
            assert asked.exists() == (number == 1)
            assert all(said(engine)[-1].values())
        finally:
            engine.close()
        assert {file.suffix for file in (tmp_path / "compiled").iterdir()} == {".refused"}


def test_a_step_that_breaks_costs_no_word(folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(rounded(), tokenizer, window=512, slots=3, compiled=folder)
    try:
        before = said(engine)
        until(lambda: engine.compiled == KINDS)

        def broken(self: CompiledStep, *_: Any) -> None:
            raise RuntimeError("the compiled step failed at Run")

        monkeypatch.setattr(CompiledStep, "__call__", broken)
        assert said(engine) == before
        assert engine.compiled == set()
    finally:
        engine.close()


def test_a_step_that_computes_something_else_is_refused(
    folder: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CompiledStep.__call__

    def wrong(self: CompiledStep, *args: Any) -> torch.Tensor:
        logits = right(self, *args)
        for values in args[-1]:
            values.mul_(1.5)
        return logits * 1.02

    monkeypatch.setattr(CompiledStep, "__call__", wrong)
    for good in folder.glob("*.good"):  # as if another library were there than the one that was found good
        good.write_text("of another")
    engine = Engine(rounded(), tokenizer, window=512, slots=3, compiled=folder)
    try:
        until(lambda: engine.warm)
        assert caplog.text.count("computes something else") == len(KINDS)
        assert engine.compiled == set()
        assert sorted(file.suffix for file in folder.iterdir() if file.suffix != ".good") == [".refused"] * len(KINDS)
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["mistral-window", "gemma3-mixed"])
def test_other_attention_is_served_without(
    name: str, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = Engine(rounded(name), tokenizer, window=512, slots=2, compiled=tmp_path)
    until(lambda: engine.warm)
    assert "without compiled steps: its attention" in caplog.text
    assert all(said(engine)[-1].values())
    engine.close()
