"""The model's forward pass over slots of the KV cache. Knows tensors, no queues."""

from typing import Any

import torch

from llmsvc.engine.chunk_attention import attend_by_chunks
from llmsvc.engine.compiled import CHUNK, CompiledStep
from llmsvc.engine.kv_cache import Masks, SlotCache, kept_in

LANES = 32
"""What torch's attention reads of a slot is rounded up to so many positions. Sums over them are then made in the same
order whatever the length, and a row gives the same bits in nearly any company."""


class Runner:
    """Prefills one slot, or decodes one token in each of several slots. There is a spare slot behind the last one."""

    def __init__(self, model: Any, slots: int, window: int) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._device = model.device
        self._shape = config.num_hidden_layers, slots + 1, window
        self._dtype = kept_in(model)
        self._masks = Masks(model)
        if model.device.type == "cpu":
            attend_by_chunks(model)
        self.compiled: dict[str, CompiledStep] = {}
        """By kind. The model itself takes the steps of other kinds."""
        self.reset()

    def reset(self) -> None:
        """Forget every slot and give its memory back."""
        self._cache = SlotCache(*self._shape, self._dtype)

    @torch.inference_mode()
    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Make the first ``tokens`` of ``slot`` what they are in ``source``."""
        self._cache.copy(source, slot, tokens)

    def plain(self) -> None:
        """Take no compiled step any more."""
        self.compiled = {}

    def drop(self, slot: int) -> None:
        """Forget one slot and give its memory back."""
        self._cache.drop(slot)

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: list[int], start: int, wanted: int = 1) -> torch.Tensor:
        """Write ``tokens`` at positions ``start``… of ``slot``.

        Returns the logits of the last ``wanted`` of them, shape (wanted, vocabulary); of none there may be any.
        """
        compiled = self.compiled
        if compiled and not self._cache.used():  # the model itself says what the cache looks like
            self._prefill(slot, tokens[:1], start, 1, None)  # again below: to the bit as it is in any other chat
        chunk = compiled.get("chunk")
        fill = compiled.get("fill", chunk)
        while chunk is not None and len(tokens) > max(CHUNK, wanted):
            self._prefill(slot, tokens[:CHUNK], start, 1, fill)
            tokens, start = tokens[CHUNK:], start + CHUNK
        kind = compiled.get("one") if len(tokens) == 1 else chunk if wanted else fill
        return self._prefill(slot, tokens, start, max(wanted, 1), kind)

    def _prefill(
        self, slot: int, tokens: list[int], start: int, wanted: int, compiled: CompiledStep | None
    ) -> torch.Tensor:
        new, end = len(tokens), start + len(tokens)
        positions = torch.arange(start, end, device=self._device)[None]
        length = self._whole(end)
        self._aim(slot, slot + 1, positions, length, length)
        ids = torch.tensor([tokens], device=self._device)
        return self._forward(ids, positions, list(range(new - wanted, new)), compiled)[0]

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int], lengths: list[int]) -> torch.Tensor:
        """Write one token in each slot of ``tokens``; return their logits in this order, shape (slots, vocabulary).

        The next pass may take the memory of this one's.
        ``lengths``: tokens already cached, by slot. Slots that lie between those asked for are computed
        as well (a slice is cheaper than a gather); they write just behind their end, where it harms nothing.
        """
        first, last = min(tokens), max(tokens) + 1
        rows = range(first, last)
        ids = torch.tensor([[tokens.get(s, 0)] for s in rows], device=self._device)
        positions = torch.tensor([[lengths[s]] for s in rows], device=self._device)
        # What is read is bounded by the longest that was asked for: an idle slot may hold far more. It looks at one
        # token only, so that its result is a number: what is no number would reach others through what is masked.
        length = self._whole(1 + max(lengths[s] for s in tokens))
        looking = torch.tensor([[lengths[s] if s in tokens else 0] for s in rows], device=self._device)
        self._aim(first, last, positions, length, max(length, 1 + max(lengths[s] for s in rows)))
        compiled = self.compiled.get("one" if len(rows) == 1 else "rows")
        logits = self._forward(ids, looking, [0], compiled)[:, 0]
        return logits if list(tokens) == list(rows) else logits[[slot - first for slot in tokens]]

    def _whole(self, length: int) -> int:
        """How many positions are read for the sake of so many; the others are masked."""
        return min(-(-length // LANES) * LANES, self._shape[2])

    def _aim(self, first: int, last: int, positions: torch.Tensor, length: int, capacity: int) -> None:
        step = self._cache.step
        step.first, step.last, step.positions, step.length, step.capacity = first, last, positions, length, capacity

    def _forward(
        self, ids: torch.Tensor, looking: torch.Tensor, wanted: list[int], compiled: CompiledStep | None
    ) -> torch.Tensor:
        """Logits of the last new tokens, whose numbers are ``wanted``, shape (rows, wanted, vocabulary).

        ``looking``: up to which position each new token, (rows, new), may look.
        """
        step = self._cache.step
        assert step.positions is not None
        if compiled is not None:
            try:
                several = wanted if ids.shape[1] == 1 else [wanted[0], *wanted]  # more than one, as it must be
                return compiled(ids, step.positions, looking, several, *self._cache.part())[:, -len(wanted) :]
            except Exception:
                self.plain()  # the model itself can do it as well; the caller tries again
                raise
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks.allowing(looking[:, None, :, None], step.length, int(looking.max())),
            position_ids=step.positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=len(wanted),
        )
        logits: torch.Tensor = output.logits
        return logits
