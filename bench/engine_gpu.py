"""Our engine on a GPU beside transformers' own continuous batching: the same random weights, one process, in turns.

python -m bench.engine_gpu [--shape 8b|0.6b] [--rounds 3] [--without-transformers]

Random weights of a real shape compute as fast as real ones. Answers are drawn at temperature 1, where nothing can be
guessed ahead. The limit is what the weights take to be read once, at the speed at which this card copies memory (bytes
read and written). Prints a table; writes ``bench/results/engine_gpu_SHAPE.json``.
"""

import argparse
import gc
import itertools
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.initialization import no_init_weights

from bench.engine import report
from bench.engine_workers import lengths
from llmsvc.engine import Engine, GenerationRequest, SamplingParams

SHAPES: dict[str, Any] = {
    "8b": LlamaConfig(  # Llama 3.1
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "0.6b": Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
}  # fmt: skip
DECODED, STREAMED, WINDOW = 256, 128, 8192


def bandwidth() -> float:
    """Bytes in a second, read and written, of a copy within the card's memory."""
    source, target = (torch.empty(2**32, dtype=torch.uint8, device="cuda") for _ in range(2))
    source.random_()
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * source.nbytes / statistics.median(times[2:])


def build(config: Any) -> Any:
    torch.manual_seed(0)
    with torch.device("cuda"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.02)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model


class Ours:
    name = "llmsvc"

    def __init__(self, model: Any, folder: Path) -> None:
        size = model.config.vocab_size
        words = Tokenizer(WordLevel({f" w{n}": n for n in range(size)}, unk_token=" w0"))
        start = time.perf_counter()
        self._engine = Engine(model, PreTrainedTokenizerFast(tokenizer_object=words), window=WINDOW, compiled=folder)
        self._begins = itertools.count(1000)
        self._text = torch.randint(0, size, (6000,), generator=torch.Generator().manual_seed(1)).tolist()
        self._ask([self._text[:20]], 2)
        print(f"first answer after {time.perf_counter() - start:.1f} s", flush=True)
        while not self._engine.warm:
            time.sleep(0.01)
        print(f"warm after {time.perf_counter() - start:.1f} s, {self._engine.compiled}", flush=True)

    def _ask(self, prompts: list[list[int]], tokens: int, temperature: float = 1) -> list[list[float]]:
        came: list[list[float]] = [[] for _ in prompts]
        over = threading.Semaphore(0)

        def receiver(n: int) -> Callable[[Any], None]:
            def take(event: Any) -> None:
                came[n].append(time.perf_counter())
                if event.finish_reason is not None:
                    assert event.error is None, event.error
                    over.release()

            return take

        for n, prompt in enumerate(prompts):
            sampling = SamplingParams(temperature=temperature, top_p=1, max_tokens=tokens)
            self._engine.submit(GenerationRequest(f"{time.time()} {n}", tuple(prompt), sampling, receiver(n)))
        for _ in prompts:
            over.acquire()
        return came

    def decode(self) -> float:
        (came,) = self._ask([self._text[:64]], DECODED)
        return (len(came) - 1) / (came[-1] - came[0])

    def prefill(self) -> float:
        start = time.perf_counter()
        (came,) = self._ask([[next(self._begins), *self._text[:3999]]], 1)
        return 4000 / (came[0] - start)

    def streams(self, count: int) -> float:
        prompts = [[next(self._begins), *self._text[9 * n : 9 * n + size - 1]] for n, size in enumerate(lengths(count))]
        start = time.perf_counter()
        came = self._ask(prompts, STREAMED)
        return count * STREAMED / (max(c[-1] for c in came) - start)

    def history(self) -> dict[str, float]:
        """Time to the first token of a fifth turn behind 4,000 tokens, and of the same prompt anew."""
        text = [next(self._begins), *self._text[:4000]]
        for n in range(4):
            self._ask([text], 24)
            text += self._text[n * 60 : n * 60 + 40]
        start = time.perf_counter()
        (came,) = self._ask([text], 1)
        fifth = came[0] - start
        text[0] = next(self._begins)
        start = time.perf_counter()
        (came,) = self._ask([text], 1)
        return {"fifth turn, ms": 1000 * fifth, "cold, ms": 1000 * (came[0] - start)}

    def close(self) -> None:
        self._engine.close()


class Transformers:
    name = "transformers"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._text = torch.randint(0, model.config.vocab_size, (6000,), generator=torch.Generator().manual_seed(1))
        model.set_attn_implementation("sdpa")

    def _run(self, prompts: list[list[int]], tokens: int) -> float:
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, eos_token_id=-1, pad_token_id=0
        )
        with self._model.continuous_batching_context_manager(generation_config=config, block=True) as manager:
            times = []
            for _ in range(2):  # the first warms up
                torch.cuda.synchronize()
                start = time.perf_counter()
                ids = set(manager.add_requests(prompts, max_new_tokens=tokens))
                while ids:
                    result = manager.get_result(timeout=1)
                    if result is not None and result.is_finished():
                        assert len(result.generated_tokens) == tokens
                        ids.discard(result.request_id)
                times.append(time.perf_counter() - start)
        return times[1]

    def decode(self) -> float:
        prompt = [self._text[:64].tolist()]
        return (DECODED - 1) / (self._run(prompt, DECODED) - self._run(prompt, 1))

    def streams(self, count: int) -> float:
        prompts = [self._text[9 * n : 9 * n + size].tolist() for n, size in enumerate(lengths(count))]
        return count * STREAMED / self._run(prompts, STREAMED)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-transformers", action="store_true")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    speed = bandwidth()
    model = build(SHAPES[options.shape])
    read = sum(
        p.nbytes
        for name, p in model.named_parameters()
        if "embed_tokens" not in name or model.config.tie_word_embeddings
    )
    limit = speed / read
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copies at {speed / 1e12:.2f} TB/s")
    print(
        f"{options.shape}: {read / 1e9:.2f} GB of weights are read for a token: {limit:.1f} tokens/s at most",
        flush=True,
    )
    found: dict[str, dict[str, list[float]]] = {}

    def note(task: str, name: str, value: float) -> None:
        found.setdefault(task, {}).setdefault(name, []).append(value)
        print(f"{task:20} {name:13} {value:10.1f}", flush=True)

    with TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            ours = Ours(model, Path(folder))
            note("decode alone", ours.name, ours.decode())
            note("share of the limit", ours.name, 100 * ours.decode() / limit)
            note("prefill 4,000", ours.name, ours.prefill())
            for task, value in ours.history().items():
                note(task, ours.name, value)
            for count in (8, 32, 128):
                ours.streams(count)
                note(f"{count} streams", ours.name, ours.streams(count))
            ours.close()
            del ours
            gc.collect()
            torch.cuda.empty_cache()
            if not options.without_transformers:
                theirs = Transformers(model)
                note("decode alone", theirs.name, theirs.decode())
                for count in (32, 128):
                    note(f"{count} streams", theirs.name, theirs.streams(count))
                gc.collect()
                torch.cuda.empty_cache()
    report(found, f"engine_gpu_{options.shape}")


if __name__ == "__main__":
    main()
