"""The model's forward pass over slots of the KV cache. Knows tensors, no queues."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from llmsvc.engine.chunk_attention import attend_by_chunks
from llmsvc.engine.compiled import CHUNK, CompiledStep
from llmsvc.engine.kv_cache import Masks, Piece, SlotCache, kept_in

LANES = 32
"""What torch's attention reads of a slot is rounded up to so many positions. Sums over them are then made in the same
order whatever the length, and a row gives the same bits in nearly any company."""


class Runner:
    """Prefills slots and decodes in them. There is a spare slot behind the last one."""

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

    def short(self, tokens: int, start: int) -> bool:
        """Whether a piece of prompt can go along with tokens that are decoded."""
        return "chunk" in self.compiled

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: list[int], start: int, wanted: int = 1) -> torch.Tensor:
        """Write ``tokens`` at positions ``start``… of ``slot``.

        Returns the logits of the last ``wanted`` of them, shape (wanted, vocabulary); of none there may be any. The
        next pass may take their memory.
        """
        fill = "fill" if "fill" in self.compiled else "chunk"
        while fill in self.compiled and len(tokens) > max(CHUNK, wanted):
            self._pass([(slot, tokens[:CHUNK], start)], [CHUNK - 1], fill)
            tokens, start = tokens[CHUNK:], start + CHUNK
        new = len(tokens)
        kind = "one" if new == 1 else "chunk" if wanted else fill
        return self._pass([(slot, tokens, start)], list(range(new - max(wanted, 1), new)), kind)

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int], lengths: list[int], pieces: Sequence[Piece] = ()) -> torch.Tensor:
        """Write one token in each slot of ``tokens``, and ``pieces`` of prompts in others, where they are ``short``.

        Returns the logits of the decoded tokens in their order, then of the last of each piece, shape (slots and
        pieces, vocabulary). The next pass may take their memory.
        ``lengths``: tokens already cached, by slot.
        """
        both = [*((slot, [token], lengths[slot]) for slot, token in tokens.items()), *pieces]
        kind = "one" if len(tokens) == 1 and not pieces else "chunk"
        if kind in self.compiled:
            ends = [end - 1 for end in accumulate(len(piece[1]) for piece in both)]
            return self._pass(both, ends, kind)
        assert not pieces
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
        end = start + len(tokens)
        positions = torch.arange(start, end, device=self._device)[None]
        length = self._whole(end)
        self._cache.aim(slot, slot + 1, positions, length, length)
        return self._forward(torch.tensor([tokens], device=self._device), positions, wanted)[0]

    def _decode(self, tokens: dict[int, int], lengths: list[int]) -> torch.Tensor:
        """By the model itself. Slots that lie between those asked for are computed as well (a slice is cheaper than a
        gather); they write just behind their end, where it harms nothing."""
        first, last = min(tokens), max(tokens) + 1
        rows = range(first, last)
        ids = torch.tensor([[tokens.get(s, 0)] for s in rows], device=self._device)
        positions = torch.tensor([[lengths[s]] for s in rows], device=self._device)
        # What is read is bounded by the longest that was asked for: an idle slot may hold far more. It looks at one
        # token only, so that its result is a number: what is no number would reach others through what is masked.
        length = self._whole(1 + max(lengths[s] for s in tokens))
        looking = torch.tensor([[lengths[s] if s in tokens else 0] for s in rows], device=self._device)
        self._cache.aim(first, last, positions, length, max(length, 1 + max(lengths[s] for s in rows)))
        logits = self._forward(ids, looking, 1)[:, 0]
        return logits if list(tokens) == list(rows) else logits[[slot - first for slot in tokens]]

    def _whole(self, length: int) -> int:
        """How many positions are read for the sake of so many; the others are masked."""
        return min(-(-length // LANES) * LANES, self._shape[2])

    def _forward(self, ids: torch.Tensor, looking: torch.Tensor, wanted: int) -> torch.Tensor:
        """Logits of the last ``wanted`` tokens of each row, shape (rows, wanted, vocabulary).

        ``looking``: up to which position each new token, (rows, new), may look.
        """
        step = self._cache.step
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks.allowing(looking[:, None, :, None], step.length, int(looking.max())),
            position_ids=step.positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        logits: torch.Tensor = output.logits
        return logits
