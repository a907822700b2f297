"""The model's forward pass over slots of one cache, for a CPU, or a GPU whose model has layers with states."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from llmsvc.engine.cache.kept import kept_in
from llmsvc.engine.cache.kinds import kinds_of
from llmsvc.engine.cache.masks import Masks
from llmsvc.engine.cache.placed import Piece
from llmsvc.engine.cache.probe import cache_argument, pass_over_one
from llmsvc.engine.cache.slots import SlotCache
from llmsvc.engine.cache.state import Snapshot
from llmsvc.engine.chunk_attention import attend_by_chunks
from llmsvc.engine.compiled import CHUNK, CompiledStep
from llmsvc.engine.runner import Costs, Runner

LANES = 32
"""What torch's attention reads of a slot is rounded up to so many positions. Sums over them are then made in the same
order whatever the length, and a row gives the same bits in nearly any company."""


class SlotRunner(Runner):
    """Many sequences side by side, at different positions, of kinds of layers that are known."""

    def __init__(self, model: Any, slots: int, window: int, *, by_chunks: bool = True, within: int = 0) -> None:
        """``by_chunks``: let the model attend by our kernel, where it can be told to. ``within``: have no more slots
        than there are texts of the window in so many bytes; 0 for all of them.
        """
        self._model, self._device = model, model.device
        self._kinds = kinds_of(model.config.get_text_config())
        self.slots, self._window = slots, window
        self._dtype = kept_in(model) if by_chunks else model.dtype
        if model.device.type == "cpu" and by_chunks:
            attend_by_chunks(model)
        self._masks, self._argument = Masks(model, self._kinds), cache_argument(model)
        self.compiled: Mapping[str, CompiledStep] = {}
        """By kind. The model itself takes the steps of other kinds."""
        self.compiles = by_chunks
        self.costs, self.moves = self._measured(), model.device.type != "cpu"
        self.guesses = self.costs.cut
        if within:
            self.slots = max(1, min(slots, within // max(self.costs.of(window), 1) - 1))
        self.reset()

    def reset(self) -> None:
        self._cache = SlotCache(self._kinds, self.slots + 1, self._window, self._dtype)
        self._snapshots: dict[int, list[Snapshot]] = {}

    def _measured(self) -> Costs:
        cache, _ = pass_over_one(self._model, self._kinds, self._dtype)
        states, self.together = cache.state_bytes(), not cache.asked
        return Costs(cache.token_bytes(), states, cut=not states, snapshot=states)

    def use(self, compiled: Mapping[str, CompiledStep]) -> None:
        self.compiled = compiled

    def plain(self) -> None:
        self.compiled = {}

    @torch.inference_mode()
    def copy(self, source: int, slot: int, tokens: int, snapshot: int = 0) -> None:
        self._cache.copy(source, slot, tokens, self._snapshots[snapshot] if snapshot else None)

    @torch.inference_mode()
    def snapshot(self, slot: int, number: int) -> None:
        self._snapshots[number] = self._cache.snapshot(slot)

    def forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._snapshots.pop(number, None)

    def drop(self, slot: int) -> None:
        self._cache.drop(slot)

    def at_rest(self) -> list[torch.Tensor]:
        kept = [state for snapshot in self._snapshots.values() for layer in snapshot for state in layer.values()]
        return [*self._cache.tensors(), *kept]

    def short(self, tokens: int, start: int) -> bool:
        return "chunk" in self.compiled

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int], start: int, wanted: int = 1) -> torch.Tensor:
        fill = "fill" if "fill" in self.compiled else "chunk"
        while fill in self.compiled and len(tokens) > max(CHUNK, wanted):
            self._pass([(slot, tokens[:CHUNK], start)], [CHUNK - 1], fill)
            tokens, start = tokens[CHUNK:], start + CHUNK
        new = len(tokens)
        kind = "one" if new == 1 else "chunk" if wanted else fill
        return self._pass([(slot, tokens, start)], list(range(new - max(wanted, 1), new)), kind)

    @torch.inference_mode()
    def decode(
        self,
        tokens: dict[int, int],
        lengths: list[int],
        pieces: Sequence[Piece] = (),
        ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        both = [*((slot, [token], lengths[slot]) for slot, token in tokens.items()), *pieces]
        kind = "one" if len(tokens) == 1 and not pieces else "chunk"
        if kind in self.compiled:
            ends = [end - 1 for end in accumulate(len(piece[1]) for piece in both)]
            return self._pass(both, ends, kind)
        assert not pieces
        if not self.together:
            return torch.cat([self._read(slot, [token], lengths[slot], 1) for slot, token in tokens.items()])
        return self._decode(tokens, lengths)

    def _pass(self, pieces: Sequence[Piece], wanted: list[int], kind: str) -> torch.Tensor:
        """One pass over tokens of some slots, compiled; the logits of those whose numbers are ``wanted``.

        Without such a step, over one piece, by the model itself.
        """
        compiled = self.compiled.get(kind)
        if compiled is None:
            (piece,) = pieces
            return self._read(*piece, len(wanted))
        if not self._cache.used():  # the model itself says what the cache looks like
            slot, tokens, start = pieces[0]
            self._read(slot, tokens[:1], start, 1)  # again below: to the bit as it is in any other chat
        ids, positions, slots = list[int](), list[int](), list[int]()
        for slot, tokens, start in pieces:
            ids += tokens
            positions += range(start, start + len(tokens))
            slots += [slot] * len(tokens)
        try:
            return compiled(ids, positions, slots, wanted, *self._cache.all())
        except Exception:
            self.plain()  # the model itself can do it as well; the caller tries again
            raise

    def _read(self, slot: int, tokens: Sequence[int], start: int, wanted: int) -> torch.Tensor:
        if start and len(tokens) > 1 and not self.continues:
            rows = [self._read(slot, [token], start + n, 1) for n, token in enumerate(tokens)]
            return torch.cat(rows[-wanted:])
        end = start + len(tokens)
        positions = torch.arange(start, end, device=self._device)[None]
        length = self._whole(end)
        self._cache.aim(slot, slot + 1, positions, length, length, start=start, begins=start == 0)
        return self._forward(torch.tensor([list(tokens)], device=self._device), positions, wanted)[0]

    def _decode(self, tokens: dict[int, int], lengths: list[int]) -> torch.Tensor:
        """By the model itself. Slots that lie between those asked for are computed as well (a slice is cheaper than a
        gather); they write keys just behind their end, where it harms nothing, and their states are not kept."""
        first, last = min(tokens), max(tokens) + 1
        rows = range(first, last)
        ids = torch.tensor([[tokens.get(s, 0)] for s in rows], device=self._device)
        positions = torch.tensor([[lengths[s]] for s in rows], device=self._device)
        # What is read is bounded by the longest that was asked for: an idle slot may hold far more. It looks at one
        # token only, so that its result is a number: what is no number would reach others through what is masked.
        length = self._whole(1 + max(lengths[s] for s in tokens))
        looking = torch.tensor([[lengths[s] if s in tokens else 0] for s in rows], device=self._device)
        capacity = max(length, 1 + max(lengths[s] for s in rows))
        kept = None if len(tokens) == len(rows) else [slot - first for slot in tokens]
        self._cache.aim(first, last, positions, length, capacity, kept=kept)
        logits = self._forward(ids, looking, 1)[:, 0]
        return logits if list(tokens) == list(rows) else logits[[slot - first for slot in tokens]]

    def _whole(self, length: int) -> int:
        """How many positions are read for the sake of so many; the others are masked."""
        return min(-(-length // LANES) * LANES, self._window)

    def _forward(self, ids: torch.Tensor, looking: torch.Tensor, wanted: int) -> torch.Tensor:
        """Logits of the last ``wanted`` tokens of each row, shape (rows, wanted, vocabulary).

        ``looking``: up to which position each new token, (rows, new), may look.
        """
        step = self._cache.step
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks.allowing(looking[:, None, :, None], step.length, int(looking.max())),
            position_ids=step.positions,
            use_cache=True,
            logits_to_keep=wanted,
            **{self._argument: self._cache},
        )
        self._cache.commit()
        logits: torch.Tensor = output.logits
        return logits[:, -wanted:]  # some models give those of all tokens
