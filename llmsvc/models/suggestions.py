"""Better models than the embedded one, for a machine with so much free memory; from a list, without asking the hub."""

from dataclasses import dataclass

_ROOM, _CHAT = 1.2, 500_000_000
"""What a model takes: so many times its download, and bytes for a chat of some thousand tokens."""


@dataclass(frozen=True)
class Suggestion:
    """A model on the hub that anybody may download. ``bytes``: of its weights there; ``why``: half a sentence."""

    id: str
    bytes: int
    why: str


@dataclass(frozen=True)
class _Listed:
    model: Suggestion
    for_cpu: bool
    """Whether it answers about as fast as people read without a GPU."""


def _listed(id_: str, gigabytes: float, why: str, *, for_cpu: bool = True) -> _Listed:
    return _Listed(Suggestion(id_, round(gigabytes * 1e9), why), for_cpu)


_LIST = (
    _listed("LiquidAI/LFM2.5-350M", 0.71, "small and quick, and better at simple questions"),
    _listed("Qwen/Qwen3-0.6B", 1.5, "knows many languages, and can think before it answers"),
    _listed("LiquidAI/LFM2.5-1.2B-Instruct", 2.34, "good everyday answers, made for machines without a GPU"),
    _listed("Qwen/Qwen3-1.7B", 4.06, "sums, code and many languages, and can think before it answers"),
    _listed("HuggingFaceTB/SmolLM3-3B", 6.15, "from the makers of the model that comes along, in six languages"),
    _listed("Qwen/Qwen3-4B-Instruct-2507", 8.05, "the best of these that a usual computer runs without a GPU"),
    _listed("Qwen/Qwen3-8B", 16.4, "knows more and reasons better; for one graphics card", for_cpu=False),
    _listed("Qwen/Qwen3-14B", 29.5, "long texts, code and reasoning; for a large card", for_cpu=False),
    _listed(
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        61.1,
        "knows most, and is quick: 3 of 30 billion weights work at a time",
        for_cpu=False,
    ),
)
"""From the smallest to the largest, each better than those before it; sizes as the hub shows them (2026-11)."""


def suggest(free_bytes: int, gpu: bool) -> list[Suggestion]:
    """Up to three models that fit in ``free_bytes``, the best first; each further one is smaller and quicker.

    ``gpu``: whether that is a GPU's memory. Without one, none is named that would answer slower than people read.
    Empty where not even the smallest fits.
    """
    fitting = [one.model for one in _LIST if (gpu or one.for_cpu) and _ROOM * one.model.bytes + _CHAT <= free_bytes]
    return fitting[:-4:-1]
