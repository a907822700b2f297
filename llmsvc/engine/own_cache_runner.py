"""The model's forward pass with its own cache, as ``generate`` makes and passes it: whatever that runs, runs here.

Each sequence is computed by itself. Snapshots are copies of the whole cache. No kind of layer has to be known. A model
that cannot go on with what it has read is given its whole text at each step, as ``generate(use_cache=False)`` does.
"""

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation.utils import ALL_CACHE_NAMES

from llmsvc.engine.cache.placed import Piece
from llmsvc.engine.runner import Costs, Runner


@dataclass
class _Held:
    """One sequence: the tokens that were read, and what the model keeps of them, by the name of its argument."""

    tokens: list[int] = field(default_factory=list)
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.tokens)


class OwnCacheRunner(Runner):
    """One sequence after the other, with the cache that transformers itself would take."""

    together = guesses = False

    def __init__(self, model: Any, slots: int, window: int, *, keeps: bool = True) -> None:
        """``keeps``: let the model keep what it has read."""
        self._model, self.slots, self.moves = model, slots, model.device.type != "cpu"
        self._arguments = set(inspect.signature(model.forward).parameters)
        self.compiled: dict[str, Any] = {}
        self._window, self._keeps = window, keeps
        self.reset()

    def reset(self) -> None:
        self._held = [_Held() for _ in range(self.slots + 1)]
        self._snapshots: dict[int, _Held] = {}

    def plain(self) -> None:
        """There is nothing else."""

    @functools.cached_property
    def costs(self) -> Costs:  # type: ignore[override]
        """By the difference between a short text and a longer one, before anything is cached."""
        if not self._keeps:
            return Costs(8)  # a number for each token
        longest = min(48, self._window - 1)
        self.prefill(0, [0] * longest, 0)
        short = max(longest // 3, 1)
        long, cuts = _bytes(self._held[0].cache), _cuts(self._held[0].cache)
        self.reset()
        self.prefill(0, [0] * short, 0)
        token = max(long - _bytes(self._held[0].cache), 0) // max(longest - short, 1)
        sequence = max(long - longest * token, 0)
        self.reset()
        return Costs(token, sequence, cut=cuts, snapshot=sequence, snapshot_token=token)

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int], start: int, wanted: int = 1) -> torch.Tensor:
        if start and len(tokens) > 1 and not self.continues:
            rows = [self.prefill(slot, [token], start + n) for n, token in enumerate(tokens)]
            return torch.cat(rows[-max(wanted, 1) :])
        held = self._held[slot]
        if start == 0:
            held = self._held[slot] = _Held([], self._fresh())
        elif held.length > start:
            self._cut(held, start)
        assert held.length == start, f"slot {slot} has {held.length} tokens, not {start}"
        output = self._model(**self._inputs(held, tokens, max(wanted, 1)), return_dict=True)
        held.tokens += tokens
        for name in ALL_CACHE_NAMES if self._keeps else ():
            if (cache := getattr(output, name, None)) is not None:
                held.cache = {name: cache}
        logits: torch.Tensor = output.logits[0, -max(wanted, 1) :]
        return logits

    def _inputs(self, held: _Held, tokens: Sequence[int], wanted: int) -> dict[str, Any]:
        """As ``generate`` makes them (``GenerationMixin.prepare_inputs_for_generation``)."""
        device, end = self._model.device, held.length + len(tokens)
        first = held.length if self._keeps else 0
        known: dict[str, Any] = {
            "attention_mask": torch.ones(1, end, dtype=torch.long, device=device),
            "position_ids": torch.arange(first, end, device=device)[None],
        }
        inputs: dict[str, Any] = self._model.prepare_inputs_for_generation(
            torch.tensor([[*held.tokens, *tokens][first:]], device=device),
            is_first_iteration=first == 0,
            use_cache=self._keeps,
            **held.cache,
            **{name: value for name, value in known.items() if name in self._arguments},
        )
        if "logits_to_keep" in self._arguments:
            inputs["logits_to_keep"] = wanted
        return inputs

    def _fresh(self) -> dict[str, Any]:
        """An empty cache, for a model that takes the library's; others make their own in the first pass."""
        name = next((name for name in ("past_key_values", "cache_params") if name in self._arguments), "")
        if not self._keeps or not name or not self._model._supports_default_dynamic_cache():
            return {}
        return {name: DynamicCache(config=self._model.config.get_text_config(decoder=True))}

    @torch.inference_mode()
    def decode(
        self,
        tokens: dict[int, int],
        lengths: list[int],
        pieces: Sequence[Piece] = (),
        ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows = [self.prefill(slot, [token], lengths[slot]) for slot, token in tokens.items()]
        return torch.cat([*rows, *(self.prefill(*piece) for piece in pieces)])

    @torch.inference_mode()
    def copy(self, source: int, slot: int, tokens: int, snapshot: int = 0) -> None:
        kept = self._snapshots[snapshot] if snapshot else self._held[source]
        if snapshot or source != slot:
            self._held[slot] = copy.deepcopy(kept)
        if self._held[slot].length > tokens:
            self._cut(self._held[slot], tokens)
        if source == self.slots:  # the spare one, which is not needed any more
            self.drop(source)

    @staticmethod
    def _cut(held: _Held, tokens: int) -> None:
        for cache in held.cache.values():
            cache.crop(tokens - held.length)
        del held.tokens[tokens:]

    def snapshot(self, slot: int, number: int) -> None:
        with torch.inference_mode():
            self._snapshots[number] = copy.deepcopy(self._held[slot])

    def forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._snapshots.pop(number, None)

    def at_rest(self) -> list[torch.Tensor]:
        seen = set[int]()
        return [t for held in (*self._held, *self._snapshots.values()) for t in _tensors(held.cache, seen)]

    def drop(self, slot: int) -> None:
        self._held[slot] = _Held()


def _cuts(cache: dict[str, Any]) -> bool:
    """Whether what is kept can be cut at any token: keys and values of all of them, and nothing else."""

    def plain(one: Any) -> bool:
        return type(one) is DynamicCache and all(type(layer) is DynamicLayer for layer in one.layers)

    return bool(cache) and all(map(plain, cache.values()))


def _bytes(kept: Any) -> int:
    """What the tensors in an object take."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(kept, set())}.values())


def _tensors(kept: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(kept) in seen:
        return
    seen.add(id(kept))
    if isinstance(kept, torch.Tensor):
        yield kept
    elif isinstance(kept, dict):
        for part in kept.values():
            yield from _tensors(part, seen)
    elif isinstance(kept, list | tuple):
        for part in kept:
            yield from _tensors(part, seen)
    elif isinstance(kept, Cache) or hasattr(kept, "__dict__"):
        yield from _tensors(vars(kept), seen)
