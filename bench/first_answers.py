"""How many of 60 everyday questions the embedded model answers right, by system prompt and sampling.

python -m bench.first_answers [MODELS_DIR] [--by transformers,kernels,avx2,plain] [--settings default,today] [--show]

Each question of ``bench/everyday.jsonl`` is asked alone, greedily and with three seeds, 60 at once, by transformers in
float32 and by our engine: with its kernels as this processor has them, with those of a processor that has AVX2 only,
and without any. Right is what all patterns of a question are found in, and none of those that are wrong, within 64
tokens; a loop is an answer that repeats itself for ever, and endless is a loop that nobody stopped within 400 tokens.
The README's first question is asked with 20 seeds besides. Prints a table, and writes it to
``bench/results/first_answers.json``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import write_results
from llmsvc.engine.repetition import Loops
from llmsvc.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.models.catalogue import SMOLLM2, Catalogue

ROOT = Path(__file__).resolve().parents[1]
SCORED, LONGEST = 64, 400
SEEDS, MORE_SEEDS = range(3), range(20)
BACKENDS = ("transformers", "kernels", "avx2", "plain")


@dataclass(frozen=True)
class Question:
    """``right`` and ``wrong``: patterns, whatever their case."""

    kind: str
    question: str
    right: list[str]
    wrong: list[str] = field(default_factory=list)

    def is_right(self, answer: str) -> bool:
        found = [re.search(pattern, answer, re.IGNORECASE) for pattern in self.right]
        return all(found) and not any(re.search(pattern, answer, re.IGNORECASE) for pattern in self.wrong)


@dataclass(frozen=True)
class Setting:
    """``system``: the system prompt; None for the template's own."""

    system: str | None
    temperature: float = 0.2
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def sampling(self, seed: int | None) -> SamplingParams:
        """``seed``: None for greedy."""
        temperature = 0.0 if seed is None else self.temperature
        return SamplingParams(
            temperature, self.top_p, 0, self.min_p, self.repetition_penalty, max_tokens=LONGEST, seed=seed
        )


@dataclass(frozen=True)
class Answer:
    """``scored``: the text of the first 64 tokens. ``stopped``: as a loop."""

    scored: str
    text: str
    loop: bool
    stopped: bool

    @property
    def endless(self) -> bool:
        return self.loop and not self.stopped


PLAIN = "You are a helpful AI assistant."
CONCISE = "You are a helpful assistant who gives short and correct answers in English"
EXAMPLES = (
    f'{CONCISE}, such as: "6 + 3 = 9", "The capital of Spain is Madrid.", "Yes, fire is hot.", '
    '"Dog in Spanish is perro."'
)
SETTINGS = {
    "default": Setting(EXAMPLES),
    "today": Setting(None),
    "card": Setting(None, 0.2, 0.9),
    "plain": Setting(PLAIN),
    "concise": Setting(f"{CONCISE}."),
    "min_p": Setting(EXAMPLES, 0.3, 1.0, 0.1),
    "penalty": Setting(EXAMPLES, repetition_penalty=1.1),
    "warm": Setting(EXAMPLES, 0.7),
}
"""By name: the embedded model's default; what was that before; what the model's card recommends; and others that the
default was chosen from."""

Ask = Callable[[list[str], list[SamplingParams]], list[Answer]]
"""Answers to prompts, each with its sampling."""


def questions() -> list[Question]:
    lines = (ROOT / "bench" / "everyday.jsonl").read_text().splitlines()
    return [Question(**json.loads(line)) for line in lines]


def prompt(tokenizer: Any, system: str | None, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def answer(tokenizer: Any, tokens: list[int], stopped: bool = False) -> Answer:
    loops = Loops(tokenizer.decode)
    loop = stopped or any(loops.push(token) for token in tokens)
    scored, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:SCORED], tokens))
    return Answer(scored, text, loop, stopped)


def transformers_asks(folder: Path) -> tuple[Any, Ask]:
    """The tokenizer, and how transformers answers: in float32, all prompts of one sampling as one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def batch(prompts: list[str], sampling: SamplingParams) -> list[list[int]]:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        torch.manual_seed(sampling.seed or 0)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p, "top_k": 0}
        out = model.generate(
            **inputs,
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=tokenizer.eos_token_id,
            **(drawn if sampling.temperature > 0 else {}),
        )
        rows: list[list[int]] = out[:, inputs.input_ids.shape[1] :].tolist()
        ends = [row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row) for row in rows]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def ask(prompts: list[str], samplings: list[SamplingParams]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for sampling in dict.fromkeys(samplings):
            rows = [n for n, own in enumerate(samplings) if own == sampling]
            for n, tokens in zip(rows, batch([prompts[n] for n in rows], sampling), strict=True):
                answers[n] = answer(tokenizer, tokens)
        return [answers[n] for n in range(len(prompts))]

    return tokenizer, ask


def engine_asks(folder: Path, kernels: Path | None) -> tuple[Any, Ask]:
    """The tokenizer, and how our engine answers. ``kernels``: where they are kept; None: without."""
    from llmsvc.engine import Engine
    from llmsvc.models.loader import load

    loaded = load(folder, "cpu", "none", lambda *_: None, kernels=kernels)
    engine = Engine(loaded.model, loaded.tokenizer, window=2048)

    def ask(prompts: list[str], samplings: list[SamplingParams]) -> list[Answer]:
        texts = [[""] for _ in prompts]
        ends: dict[int, TokenEvent] = {}
        done = threading.Event()

        def receiver(number: int) -> Callable[[TokenEvent], None]:
            def take(event: TokenEvent) -> None:
                texts[number].append(event.text)
                if event.finish_reason is not None:
                    ends[number] = event
                    if len(ends) == len(prompts):
                        done.set()

            return take

        for number, (text, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            ids = tuple(loaded.tokenizer(text, add_special_tokens=False).input_ids)
            engine.submit(GenerationRequest(str(number), ids, sampling, receiver(number)))
        done.wait()
        failed = [end.error for end in ends.values() if end.error]
        if failed:
            raise failed[0]
        spoken = [loaded.tokenizer("".join(parts), add_special_tokens=False).input_ids for parts in texts]
        stopped = [ends[n].finish_reason is FinishReason.REPETITION for n in range(len(prompts))]
        return [answer(loaded.tokenizer, *one) for one in zip(spoken, stopped, strict=True)]

    return loaded.tokenizer, ask


def measure(tokenizer: Any, ask: Ask, setting: Setting, show: bool) -> dict[str, Any]:
    """Right and endless of 60, greedily and by seed; and how often the first question's answer was right."""
    asked = questions()
    prompts = [prompt(tokenizer, setting.system, one.question) for one in asked]
    row: dict[str, Any] = {"seeds": [], "loops": 0, "endless": 0}
    for seed in (None, *SEEDS):
        answers = ask(prompts, [setting.sampling(seed)] * len(prompts))
        right = [one.is_right(said.scored) for one, said in zip(asked, answers, strict=True)]
        row["loops"] += sum(said.loop for said in answers)
        row["endless"] += sum(said.endless for said in answers)
        if seed is None:
            row["greedy"] = sum(right)
            row["wrong"] = {
                q.question: said.text[:200] for q, said, ok in zip(asked, answers, right, strict=True) if not ok
            }
        else:
            row["seeds"].append(sum(right))
    firsts = ask([prompts[0]] * len(MORE_SEEDS), [setting.sampling(seed) for seed in MORE_SEEDS])
    row["first"] = sum(asked[0].is_right(said.scored) for said in firsts)
    if show:
        print(*(f"    {question}\n      {said!r}" for question, said in row["wrong"].items()), sep="\n")
    return row


def avx2_compiler(folder: Path) -> Path:
    """A C++ compiler for a processor that has AVX2 and nothing newer."""
    script = folder / "g++-avx2"
    script.write_text('#!/bin/sh\nexec g++ "$@" -march=haswell\n')
    script.chmod(0o755)
    return script


def by_child(backend: str, arguments: list[str], folder: Path) -> None:
    """Measure in a process of its own, whose kernels and threads are its own."""
    env = dict(os.environ)
    if backend == "avx2":
        env |= {"CXX": str(avx2_compiler(folder)), "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "bench.first_answers", *arguments, "--child", backend, "--kept", str(folder)]
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def child(options: argparse.Namespace, folder: Path) -> None:
    if options.child == "transformers":
        tokenizer, ask = transformers_asks(folder)
    else:
        kept = None if options.child == "plain" else Path(options.kept) / options.child
        tokenizer, ask = engine_asks(folder, kept)
    rows = {}
    for name in options.settings.split(","):
        rows[name] = row = measure(tokenizer, ask, SETTINGS[name], options.show)
        seeds = " ".join(f"{right:3}" for right in row["seeds"])
        counts = f"{row['loops']:7}{row['endless']:9}{row['first']:12}"
        print(f"{options.child:13}{name:9}{row['greedy']:7}   {seeds}{counts}", flush=True)
    (Path(options.kept) / f"{options.child}.json").write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default=str(ROOT / "data" / "models"))
    parser.add_argument("--by", default=",".join(BACKENDS))
    parser.add_argument("--settings", default="default,today")
    parser.add_argument("--show", action="store_true", help="print what was answered wrong, greedily")
    parser.add_argument("--child", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--kept", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options, Catalogue(Path(options.models)).folder(SMOLLM2.id))
    print(
        f"{'by':13}{'setting':9}{'greedy':>7}   {'3 seeds':11}{'loops':>7}{'endless':>9}{'first of 20':>12}", flush=True
    )
    with tempfile.TemporaryDirectory() as kept:
        for backend in options.by.split(","):
            by_child(backend, sys.argv[1:], Path(kept))
        names = options.by.split(",")
        write_results("first_answers", {name: json.loads((Path(kept) / f"{name}.json").read_text()) for name in names})
    return None


if __name__ == "__main__":
    main()
