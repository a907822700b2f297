"""The contestants of ``bench.engine``: each loads the model, says what it can do, and then does it when told."""

import gc
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

LICENSE = (Path(__file__).resolve().parents[1] / "LICENSE").read_text() * 3
DECODED = 128
STREAMED = 64
"""Tokens of each of many streams, whose prompts have 16 to 140 tokens."""


def say(value: Any) -> None:
    print("\x1e" + json.dumps(value), flush=True)


def serve(tasks: dict[str, Callable[[], float]]) -> None:
    say(list(tasks))
    for line in sys.stdin:
        say(tasks[json.loads(line)]())


def lengths(count: int) -> list[int]:
    return [16 + (n * 37) % 125 for n in range(count)]


def perplexity(model: Any, words: list[int]) -> float:
    """Of a fixed text, the license three times over, in pieces of 512 tokens."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for at in range(0, len(words) // 3 - 512, 512):
            ids = torch.tensor([words[at : at + 512]])
            total += float(model(ids, labels=ids).loss) * 511
            count += 511
    return float(torch.tensor(total / count).exp())


def llmsvc(folder: str, data: str) -> None:
    from llmsvc.engine.compute import compute, wait_briefly

    wait_briefly()  # as app.py does, and before torch comes
    from llmsvc.engine import Engine, GenerationRequest, SamplingParams
    from llmsvc.models.loader import load

    compiled = Path(data) / "compiled"
    loaded = compute(partial(load, Path(folder), "cpu", "none", lambda *_: None, kernels=compiled))
    engine = Engine(loaded.model, loaded.tokenizer, window=loaded.window, compiled=compiled)
    while not engine.warm:  # as it is from the second start on
        time.sleep(0.1)
    gc.collect()
    gc.freeze()  # as the service does behind each load
    words = loaded.tokenizer(LICENSE)["input_ids"]

    @contextmanager
    def fresh() -> Iterator[Engine]:
        other = Engine(loaded.model, loaded.tokenizer, window=loaded.window, compiled=compiled)
        while not other.warm:
            time.sleep(0.1)
        yield other
        other.close()

    def plain() -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def ask(
        prompts: list[list[int]], tokens: int, by: Engine = engine, temperature: float = 0
    ) -> tuple[list[list[float]], list[str]]:
        """When each token came, by prompt, and the texts."""
        came: list[list[float]] = [[] for _ in prompts]
        texts, over = ["" for _ in prompts], threading.Semaphore(0)

        def receiver(n: int) -> Callable[[Any], None]:
            def take(event: Any) -> None:
                came[n].append(time.perf_counter())
                texts[n] += event.text
                if event.finish_reason is not None:
                    over.release()

            return take

        for n, prompt in enumerate(prompts):
            sampling = SamplingParams(temperature=temperature, max_tokens=tokens, seed=1)
            by.submit(GenerationRequest(f"{time.time()} {n}", tuple(prompt), sampling, receiver(n)))
        for _ in prompts:
            over.acquire()
        return came, texts

    def decode(temperature: float = 0) -> float:
        (came,), _ = ask([words[200:264]], DECODED, temperature=temperature)
        return (len(came) - 1) / (came[-1] - came[0])

    begins = itertools.count(20)  # each prompt begins otherwise, so that nothing is cached

    def prefill() -> float:
        start = time.perf_counter()
        (came,), _ = ask([[next(begins), *words[:999]]], 1)
        return 1000 / (came[0] - start)

    def streams(count: int) -> float:
        prompts = [[next(begins), *words[50 * n + 7 : 50 * n + 6 + length]] for n, length in enumerate(lengths(count))]
        start = time.perf_counter()
        came, _ = ask(prompts, STREAMED)
        return sum(map(len, came)) / (max(c[-1] for c in came) - start)

    def first_token(prompt: list[int]) -> float:
        start = time.perf_counter()
        (came,), _ = ask([prompt], 1)
        return came[0] - start

    def history(begin: int) -> list[int]:
        """Four turns of a chat, the first one long; they are answered one after the other."""
        text = [begin, *words[:4000]]
        ask([text], 24)
        for n in range(3):
            text += words[n * 60 : n * 60 + 40]
            ask([text], 24)
        return [*text, *words[300:340]]

    last: dict[str, list[int]] = {}

    def fifth_turn() -> float:
        last["prompt"] = history(next(begins))
        return first_token(last["prompt"])

    def cold() -> float:
        return first_token([next(begins), *last["prompt"][1:]])

    def same_words() -> float:
        """1 when a cached prompt is answered as by an engine that has seen nothing."""
        _, (warm,) = ask([last["prompt"]], 48)
        with fresh() as other:
            _, (anew,) = ask([last["prompt"]], 48, other)
        return float(warm == anew)

    def distances(beside: bool) -> list[float]:
        """Seconds between tokens of one answer, in order of size."""
        prompts, came = [words[200:264]], []
        over = threading.Event()

        def take(event: Any) -> None:
            came.append(time.perf_counter())
            if event.finish_reason is not None:
                over.set()

        name = f"paced {time.time()}"
        # Drawn, so that nothing is said twice: what is guessed comes several tokens at once.
        sampling = SamplingParams(temperature=1, seed=1, max_tokens=4000 if beside else DECODED)
        engine.submit(GenerationRequest(name, tuple(prompts[0]), sampling, take))
        if beside:
            while len(came) < 10:
                time.sleep(0.001)
            start = time.perf_counter()
            ask([[next(begins), *words[:4000]]], 1)
            end = time.perf_counter()
            engine.cancel(name)
            over.wait()
            came = [at for at in came if start <= at <= end]
        over.wait()
        return sorted(b - a for a, b in itertools.pairwise(came))

    def cancel() -> float:
        over, came = threading.Event(), []

        def take(event: Any) -> None:
            came.append(event)
            if event.finish_reason is not None:
                over.set()

        engine.submit(GenerationRequest("cancelled", tuple(words[200:264]), SamplingParams(max_tokens=4000), take))
        while len(came) < 20:
            time.sleep(0.001)
        start = time.perf_counter()
        engine.cancel("cancelled")
        over.wait()
        return 1000 * (time.perf_counter() - start)

    serve(
        {
            "drawn": lambda: decode(temperature=1),
            "same words": same_words,
            "p50 alone, ms": lambda: 1000 * statistics.median(distances(False)),
            "p50 beside a prompt, ms": lambda: 1000 * statistics.median(distances(True)),
            "p95 beside a prompt, ms": lambda: 1000 * (found := distances(True))[int(0.95 * len(found))],
            "cancel, ms": cancel,
            "perplexity": lambda: compute(lambda: perplexity(loaded.model, words) / perplexity(plain(), words)),
            "decode alone": decode,
            "prefill 1,000": prefill,
            "8 streams": lambda: streams(8),
            "32 streams": lambda: streams(32),
            "fifth turn, s": fifth_turn,
            "cold, s": cold,
        }
    )


def transformers(folder: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    words = AutoTokenizer.from_pretrained(folder)(LICENSE)["input_ids"]

    @torch.inference_mode()
    def generate(length: int, tokens: int) -> float:
        start = time.perf_counter()
        ids = torch.tensor([words[200 : 200 + length]])
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return time.perf_counter() - start

    def streams(count: int) -> float:
        prompts = [words[50 * n + 7 : 50 * n + 7 + length] for n, length in enumerate(lengths(count))]
        config = GenerationConfig(max_new_tokens=STREAMED, do_sample=False, eos_token_id=-1, pad_token_id=0)
        start = time.perf_counter()
        found = model.generate_batch(inputs=prompts, generation_config=config)
        tokens = sum(len(row.generated_tokens) for row in found.values())
        return tokens / (time.perf_counter() - start)

    serve(
        {
            "decode alone": lambda: (DECODED - 1) / (generate(64, DECODED) - generate(64, 1)),
            "prefill 1,000": lambda: 1000 / generate(1000, 1),
            "8 streams": lambda: streams(8),
            "32 streams": lambda: streams(32),
        }
    )


def llama_cpp(gguf: str) -> None:
    from llama_cpp import Llama

    model = Llama(gguf, n_ctx=8192, n_threads=2, n_threads_batch=2, verbose=False)
    words = model.tokenize(LICENSE.encode())

    def decode() -> float:
        model.reset()
        model.eval(words[200:264])
        start = time.perf_counter()
        for _ in range(DECODED - 1):
            model.eval([model.sample(temp=0)])
        return (DECODED - 1) / (time.perf_counter() - start)

    def prefill() -> float:
        model.reset()
        start = time.perf_counter()
        model.eval(words[200:1200])
        return 1000 / (time.perf_counter() - start)

    def turns(cold: bool) -> float:
        model.reset()
        if not cold:
            model.eval(words[:4160])
        start = time.perf_counter()
        model.eval(words[4160:4200] if not cold else words[:4200])
        return time.perf_counter() - start

    serve(
        {
            "decode alone": decode,
            "prefill 1,000": prefill,
            "fifth turn, s": lambda: turns(False),
            "cold, s": lambda: turns(True),
        }
    )


def mistral_rs(gguf: str) -> None:
    from mistralrs import CompletionRequest, Runner, Which

    file = Path(gguf)
    which = Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name)
    runner = Runner(which=which)

    def usage(prompt: str, tokens: int) -> Any:
        request = CompletionRequest(model="default", prompt=prompt, max_tokens=tokens, temperature=0.0)
        return runner.send_completion_request(request).usage

    serve(
        {
            "decode alone": lambda: usage(LICENSE[:300], DECODED).avg_compl_tok_per_sec,
            "prefill 1,000": lambda: usage(str(time.time()) + LICENSE[:4300], 1).avg_prompt_tok_per_sec,
        }
    )


if __name__ == "__main__":
    workers = {"llmsvc": llmsvc, "transformers": transformers, "llama.cpp": llama_cpp, "mistral.rs": mistral_rs}
    workers[sys.argv[1]](*sys.argv[2:])
