"""Every architecture against transformers: ``python -m bench.architectures [TYPE...] [--write]``.

A tiny random checkpoint of each type of transformers' causal and image-text-to-text mappings is written, loaded as the
service loads it, and asked greedily; ``generate`` of the same weights in float32, with its own cache, says what is
right. Types that are named are measured anew, and the others kept as they were.
``--write`` keeps the table in ``docs/models.md``.
"""

import argparse
import json
import logging
import os
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from bench.report import read_results, write_results  # noqa: E402
from bench.shrink import END, VOCABULARY  # noqa: E402
from bench.zoo import Species, checkpoint, species  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ANSWER, WINDOW, CHUNK = 12, 400, 32
"""Tokens: of each answer, of the model's window, and of a piece of a prompt."""
TIE, CLOSE = 1e-4, 1e-3
"""Log-probabilities: tokens so close are equally likely; and by how much ours may differ."""
SECONDS = 60
EQUAL, REFUSED, DIFFERENT, FAILED, UNMADE = "equal", "refused", "different", "failed", "not made"
CASES = ("alone", "batch", "pieces", "next turn", "branch")


@dataclass
class Result:
    """What became of one type. ``worst``: the largest difference of log-probabilities, ``reused``: by case."""

    name: str
    outcome: str = FAILED
    note: str = ""
    served: str = ""
    worst: float = 0.0
    reused: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Answer:
    """Tokens with their log-probabilities. ``margins``: by how much each was likelier than the next one."""

    tokens: list[int]
    logprobs: list[float]
    margins: list[float] = field(default_factory=list)
    cached: int = 0


def words(count: int = VOCABULARY) -> Any:
    """A tokenizer of so many words, each a letter of its own; the third ends an answer."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({chr(0x4E00 + n): n for n in range(count)}, unk_token=chr(0x4E00)))
    made.decoder = decoders.Fuse()
    ends = dict(zip(("pad_token", "bos_token", "eos_token"), map(chr, range(0x4E00, 0x4E03)), strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=ends["pad_token"], **ends)


def rows(model: Any) -> int:
    """How many words a model has embeddings for; as many as most where it does not say."""
    try:
        return min(VOCABULARY, len(model.get_input_embeddings().weight))
    except (AttributeError, NotImplementedError):
        return VOCABULARY


def reference(model: Any, prompt: list[int]) -> Answer:
    """What transformers itself answers."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=ANSWER,
            output_logits=True,
            return_dict_in_generate=True,
        )
    scores = torch.cat(said.logits).float().log_softmax(-1)
    tokens = said.sequences[0, -len(scores) :].tolist()
    best = scores.topk(2).values
    if tokens[-1] == END:
        tokens.pop()
    return Answer(tokens, [float(scores[n, t]) for n, t in enumerate(tokens)], (best[:, 0] - best[:, 1]).tolist())


class Asked:
    """An engine that is asked and whose events are read as tokens."""

    def __init__(self, model: Any, tokenizer: Any, window: int) -> None:
        from llmsvc.engine import Engine

        self._count = 0
        self.engine = Engine(model, tokenizer, window=window, chunk=CHUNK, slots=4, kv_bytes=64 << 20)

    def all(self, prompts: list[list[int]]) -> list[Answer]:
        """The answers to prompts that are sent at once. Raises the error of one that failed."""
        import queue

        from llmsvc.engine import GenerationRequest, SamplingParams, TokenEvent

        events: queue.Queue[TokenEvent] = queue.Queue()
        answers, ended = {}, 0
        for prompt in prompts:
            self._count += 1
            answers[str(self._count)] = Answer([], [])
            params = SamplingParams(temperature=0, max_tokens=ANSWER, logprobs=0)
            self.engine.submit(GenerationRequest(str(self._count), tuple(prompt), params, events.put))
        while ended < len(prompts):
            event = events.get(timeout=SECONDS)
            if event.error is not None:
                raise event.error
            answer = answers[event.request_id]
            said = [(ord(each.token) - 0x4E00, each.logprob) for each in event.logprobs if each.token]
            answer.tokens += [token for token, _ in said if token != END]
            answer.logprobs += [logprob for token, logprob in said if token != END]
            answer.cached = max(answer.cached, event.cached_tokens)
            ended += event.finish_reason is not None
        return list(answers.values())


def differs(ours: Answer, right: Answer) -> tuple[float, str]:
    """(largest difference of log-probabilities, what is wrong or noteworthy in words)."""
    worst = 0.0
    for n, (mine, its) in enumerate(zip(ours.tokens, right.tokens, strict=False)):
        worst = max(worst, abs(ours.logprobs[n] - right.logprobs[n]))
        if mine != its:
            tie = right.margins[n] < TIE and worst < CLOSE
            return worst, "" if tie else f"token {n} is {mine} instead of {its}"
    if len(ours.tokens) != len(right.tokens):
        return worst, f"{len(ours.tokens)} tokens instead of {len(right.tokens)}"
    return worst, "" if worst < CLOSE else f"log-probabilities differ by {worst:.2g}"


def compare(asked: Asked, right: Callable[[list[int]], Answer], result: Result) -> None:
    """Ask in all five ways and write into ``result`` what differs."""
    import torch

    dice = torch.Generator().manual_seed(7)

    def text(length: int) -> list[int]:
        return list(torch.randint(3, 250, (length,), generator=dice).tolist())

    first, long = text(45), text(min(150, asked.engine.window - 2 * ANSWER - 8))
    batch = [text(20), text(52), text(7)]
    wrong = []

    def check(case: str, prompts: list[list[int]]) -> list[Answer]:
        answers = asked.all(prompts)
        for ours, prompt in zip(answers, prompts, strict=True):
            worst, said = differs(ours, right(prompt))
            result.worst = max(result.worst, worst)
            if said:
                wrong.append(f"{case}: {said}")
            result.reused[case] = ours.cached / len(prompt)
        return answers

    check("alone", [first])
    check("batch", batch)
    answer = check("pieces", [long])[0]
    check("next turn", [long + answer.tokens + text(8)])
    check("branch", [long[:80] + text(30)])
    result.outcome, result.note = (DIFFERENT, "; ".join(wrong)) if wrong else (EQUAL, "")


def measure(one: Species, folder: Path) -> Result:
    """All of one type, within ``folder``."""
    result = Result(one.name)
    folder.mkdir()
    try:
        model = checkpoint(one, folder)
    except Exception as error:
        result.outcome, result.note = UNMADE, _first(error)
        return result
    words(rows(model)).save_pretrained(folder)
    try:
        reference(model, [5, 6, 7, 8])
        unable = ""
    except Exception as error:
        unable = _first(error)
    _serve(folder, model, result)
    if unable and result.outcome != REFUSED:
        result.note = f"transformers' own generate fails ({unable}); ours: {result.outcome} {result.note}"
        result.outcome = FAILED
    return result


def _serve(folder: Path, model: Any, result: Result) -> None:
    from llmsvc.errors import LlmsvcError
    from llmsvc.models.can_it_run import verdict
    from llmsvc.models.headers import read
    from llmsvc.models.loader import load

    try:
        said = verdict(read(folder))
        if not said.runs:
            result.outcome, result.note = REFUSED, f"before the download: {said.reason}"
            return
        loaded = load(folder, "cpu", "none", lambda *_: None, full_weights=True)
        asked = Asked(loaded.model, loaded.tokenizer, min(WINDOW, loaded.window))
        result.served = asked.engine.served
    except LlmsvcError as error:
        result.outcome, result.note = REFUSED, f"at the load: {error}"
        return
    except Exception as error:
        result.note = f"the load ends in {_first(error)}"
        return
    try:
        compare(asked, lambda prompt: reference(model, prompt), result)
    except Exception as error:
        result.outcome, result.note = FAILED, f"ready, then: {_first(error)}"
    finally:
        asked.engine.close()


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def in_child(one: Species) -> Result:
    """``measure`` in a forked process, which may crash or hang alone."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            os.close(reads)
            _report(one, Path(work) / one.type, writes)
        os.close(writes)
        result = _await(one, child, reads)
    result.seconds = time.monotonic() - started
    return result


def _report(one: Species, folder: Path, pipe: int) -> None:
    """The child: measures, writes one line and is gone."""
    try:
        os.write(pipe, json.dumps(asdict(measure(one, folder))).encode())
    except BaseException as error:
        os.write(pipe, json.dumps(asdict(Result(one.name, note=f"the bench itself: {_first(error)}"))).encode())
    finally:
        os._exit(0)


def _await(one: Species, child: int, pipe: int) -> Result:
    ready, _, _ = select.select([pipe], [], [], SECONDS)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(pipe, "rb") as lines:
        said = lines.read()
    os.waitpid(child, 0)
    if said:
        return Result(**json.loads(said))
    return Result(one.name, note="the process died" if ready else f"no answer within {SECONDS} s")


def line(result: Result) -> str:
    """One row for the terminal."""
    reused = " ".join(f"{result.reused[case]:4.0%}" if case in result.reused else "   -" for case in CASES[3:])
    return (
        f"{result.name:32} {result.outcome:10} {result.served:14} {result.worst:8.1e} {reused} "
        f"{result.seconds:5.1f} s  {result.note[:150]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*", help="types of models; all by default")
    parser.add_argument("--task", choices=("text", "image"), help="one of the two mappings")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/models.md")
    options = parser.parse_args()
    import torch
    import transformers.generation.utils
    import transformers.masking_utils
    import transformers.modeling_layers

    from bench.models_page import page, summary
    from llmsvc.engine import Engine, int8  # noqa: F401
    from llmsvc.models import as_stored, can_it_run, loader  # noqa: F401

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    for one in species():
        if options.task in (None, one.task) and (not options.types or one.type in options.types):
            results.append(in_child(one))
            print(line(results[-1]), flush=True)
    print(summary(results))
    results = with_earlier(results)
    write_results("architectures", [asdict(result) for result in results])
    if options.write:
        (ROOT / "docs" / "models.md").write_text(page(results))


def with_earlier(results: list[Result]) -> list[Result]:
    """These results, and those of other types that were measured before, in the order of the mappings."""
    with suppress(FileNotFoundError):
        results = [Result(**row) for row in read_results("architectures")] + results
    latest = {result.name: result for result in results}
    return [latest[one.name] for one in species() if one.name in latest]


if __name__ == "__main__":
    main()
