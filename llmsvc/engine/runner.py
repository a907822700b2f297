"""The model's forward pass over slots of the KV cache. Knows tensors, no queues."""

from typing import Any

import torch

from llmsvc.engine.kv_cache import SlotCache


class Runner:
    """Prefills one slot, or decodes one token in each of several slots."""

    def __init__(self, model: Any, slots: int) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._device = model.device
        self._slots = slots
        self._layers = config.num_hidden_layers
        self._kinds = list(getattr(config, "layer_types", None) or ())
        self._window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            self._window = None
        self.reset()

    def reset(self) -> None:
        """Forget every slot and give its memory back."""
        self._cache = SlotCache(self._layers, self._slots)

    @torch.inference_mode()
    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Make the first ``tokens`` of ``slot`` what they are in ``source``."""
        self._cache.copy(source, slot, tokens)

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: list[int], start: int) -> torch.Tensor:
        """Write ``tokens`` at positions ``start``… of ``slot``; return the last one's logits, shape (vocabulary,)."""
        positions = torch.arange(start, start + len(tokens), device=self._device)[None]
        return self._forward(slot, slot + 1, torch.tensor([tokens], device=self._device), positions)[0]

    @torch.inference_mode()
    def decode(self, tokens: dict[int, int], lengths: list[int]) -> dict[int, torch.Tensor]:
        """Write one token in each slot of ``tokens``; return their logits.

        ``lengths``: tokens already cached, by slot. Slots that lie between those asked for are computed
        as well (a slice is cheaper than a gather); they write just behind their end, where it harms nothing.
        """
        first, last = min(tokens), max(tokens) + 1
        ids = torch.tensor([[tokens.get(s, 0)] for s in range(first, last)], device=self._device)
        positions = torch.tensor([[lengths[s]] for s in range(first, last)], device=self._device)
        logits = self._forward(first, last, ids, positions)
        return {slot: logits[slot - first] for slot in tokens}

    def _forward(self, first: int, last: int, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        step = self._cache.step
        step.first, step.last, step.positions = first, last, positions
        step.length = int(positions.max()) + 1
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask(positions, step.length),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _mask(self, positions: torch.Tensor, length: int) -> Any:
        """Boolean masks of shape (rows, 1, new, length), True where a token may look."""
        keys = torch.arange(length, device=self._device)
        query = positions[:, None, :, None]
        causal = keys <= query
        if self._window is None:
            return causal
        near = causal & (keys > query - self._window)
        if len(set(self._kinds)) > 1:  # such models take a mask for each kind of layer
            return {"full_attention": causal, "sliding_attention": near}
        return causal if self._kinds and self._kinds[0] == "full_attention" else near
