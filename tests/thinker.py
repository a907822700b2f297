"""The service with a model that thinks: its engine writes scripts instead of computing, all else is the real one.

python tests/thinker.py --port 7861 --data-dir DIR --tokenizer FOLDER
"""

import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llmsvc import settings
from llmsvc.engine import FinishReason, GenerationRequest, TokenEvent
from llmsvc.models.loader import LoadedModel
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.service import Service
from llmsvc.ui.launch import launch

RATE = 100.0
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    '{{ \'</tools>\n<tool_call>\n{"name": …, "arguments": …}\n</tool_call><|im_end|>\n\' }}{% endif %}'
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] %}{{ '\n<tool_call>\n{\"name\": \"' + call['function']['name'] }}"
    "{{ '\", \"arguments\": ' }}{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""In the way of Qwen3.5: it opens the reasoning itself, knows it off and on, and shows none of earlier answers."""

THOUGHT = "The user asks for **this**. Let me see: 1 < 2, so it is so."
ANSWER = "It is *so*."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SAMPLING = {"temperature": 0.6, "top_k": 20.0, "max_length": 9.0}
LONG = " ".join(f"thought{number}" for number in range(150))


def script(prompt: str) -> tuple[str, FinishReason]:
    """What the model says to a prompt; it goes on behind what stands there already."""
    asked = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    answer = prompt.rpartition("<|im_start|>assistant\n")[2]
    thought = LONG if "long" in asked else THOUGHT
    said = f"{ANSWER}\n{CALL}" if "weather" in asked else "again " * 40 if "loop" in asked else ANSWER
    begun = answer.removeprefix("<think>\n")
    whole = said if "<think>\n\n</think>" in answer else f"{thought}\n</think>\n\n{said}"
    rest = whole[len(begun) :] if begun and whole.startswith(begun) else whole
    return rest, FinishReason.REPETITION if "loop" in asked else FinishReason.STOP


class ThinkingEngine:
    """One thread gives each request its tokens when they are due."""

    kv_bytes = cached = tokens = queued = 0
    reading = 0.0

    def __init__(self, tokenizer: Any) -> None:
        self.asked: list[GenerationRequest] = []
        self._tokenizer, self._lock = tokenizer, threading.Condition()
        self._going: dict[str, threading.Event] = {}

    @property
    def running(self) -> int:
        return len(self._going)

    def submit(self, request: GenerationRequest) -> None:
        self.asked.append(request)
        self._going[request.id] = gone = threading.Event()
        threading.Thread(target=self._answer, args=(request, gone), daemon=True).start()

    def cancel(self, id_: str) -> None:
        if gone := self._going.get(id_):
            gone.set()

    def close(self) -> None:
        for id_ in list(self._going):
            self.cancel(id_)

    def _answer(self, request: GenerationRequest, gone: threading.Event) -> None:
        text, reason = script(self._tokenizer.decode(request.prompt))
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        number, most, written = 0, request.sampling.max_tokens, ""
        while ids and number < most and not gone.is_set():
            limit = request.thinking
            if limit and number == limit.tokens and not any(mark in written for mark in limit.until):
                ids = [*limit.closing, *self._tokenizer(ANSWER, add_special_tokens=False)["input_ids"]]
            number += 1
            piece, ids = self._tokenizer.decode(ids[:1]), ids[1:]
            written += piece
            gone.wait(1 / RATE)
            request.deliver(TokenEvent(request.id, piece, number))
        del self._going[request.id]
        reason = FinishReason.CANCELLED if gone.is_set() else FinishReason.LENGTH if ids else reason
        request.deliver(TokenEvent(request.id, "", number, reason))


class ThinkingPool:
    """Stands where the ModelPool stands: every model is the same one, and is there."""

    def __init__(self, catalogue: Any, tokenizer: Any) -> None:
        self.catalogue, self.engine = catalogue, ThinkingEngine(tokenizer)
        loaded = LoadedModel(None, tokenizer, "cpu", "fp32", 8192, 0, plain_template=False, sampling=SAMPLING)
        self._pooled = PooledModel(str(next(iter(catalogue.list()))["id"]), "none", "cpu", "ready")
        self._pooled.loaded, self._pooled.engine = loaded, self.engine
        self._pooled.ready.set_result(self._pooled)

    def list(self) -> list[dict[str, Any]]:
        return [self._pooled.row()]

    def state(self) -> tuple[Any, ...]:
        return ()

    def get(self, model: str) -> PooledModel | None:
        return self._pooled if model == self._pooled.id else None

    def ready(self, _: str) -> PooledModel:
        return self._pooled

    def request(self, *_: str) -> PooledModel:
        return self._pooled

    async def acquire(self, _: str) -> PooledModel:
        return self._pooled

    def release(self, _: PooledModel) -> None:
        return None

    def usage(self) -> dict[str, int]:
        return dict.fromkeys(("limit", "used", "parked_limit", "parked"), 0)

    def tidy(self) -> None:
        return None

    def on_progress(self, _: Any) -> None:
        return None

    def close(self) -> None:
        self.engine.close()


def thinking_tokenizer(folder: str) -> Any:
    """The embedded model's, with a template that thinks."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def made(arguments: list[str], tokenizer: Any) -> Service:
    service = Service(settings.parse(arguments))
    pool: Any = ThinkingPool(service.catalogue, tokenizer)
    kept: ModelPool = pool
    service.pool = service.turns._pool = service.completions._pool = service.turns._idle._pool = kept
    service.preferences._pool = kept
    return service


if __name__ == "__main__":
    at = sys.argv.index("--tokenizer")
    launch(made([*sys.argv[1:at], *sys.argv[at + 2 :]], thinking_tokenizer(sys.argv[at + 1])))
