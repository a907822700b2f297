"""Chooses the next token of each row from its logits."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llmsvc.engine.kernels import kernels, run_kernel
from llmsvc.engine.request import SamplingParams

_NUCLEUS, _WIDER = 512, 8192
"""Of the likeliest tokens: a nucleus is nearly always smaller than the first, and hardly ever wider than the second.
On a CPU without kernels of ours these are found in 0.4 and 1 ms among 49,152; sorting all of them takes 5."""
_MORE = -2


class Draw:
    """A token for each row of logits, being drawn.

    On a GPU ``ids``, (rows,), are there at once for what is computed next; ``tokens`` waits for them. Filters run in
    the order of transformers' logits warpers: temperature, top-k, top-p (nucleus sampling, Holtzman et al. 2019), min-p
    (Nguyen et al. 2024). Each row has a key of its own, so its choice does not hang on the others. The draw is a race
    (Gumbel-max; Yellott 1977) with a handicap for each token id: the last bits of a probability, which differ with what
    else was computed, decide next to nothing then; a cumulative sum would end at a neighbouring token. On a CPU it is a
    kernel of ours that draws, where there is one (cpp/draw.cpp).
    """

    @torch.inference_mode()
    def __init__(self, logits: torch.Tensor, params: Sequence[SamplingParams], keys: Sequence[int]) -> None:
        """``logits``: (rows, vocabulary), with -inf where a token is not allowed; ``keys``: 62 random bits each."""
        self._params, self._keys, self._whole = params, keys, logits.shape[-1]
        greedy, free, self._bounded = [list[int]() for _ in range(3)]
        ours = logits.device.type == "cpu" and kernels() is not None
        for row, own in enumerate(params):
            any_token = ours or (own.top_k <= 0 and own.top_p >= 1)
            likeliest = own.temperature <= 0 and not ours
            (greedy if likeliest else free if any_token else self._bounded).append(row)
        found: list[torch.Tensor] = []
        if greedy:
            found.append(_rows(logits, greedy).argmax(-1))
        if free:
            found.append(self._draw(_by_kernel if ours else _free, _rows(logits, free), free))
        if self._bounded:
            most = min(max(_NUCLEUS, *(params[row].top_k for row in self._bounded)), self._whole)
            self._kept = _rows(logits, self._bounded)
            found.append(self._draw(_bounded, self._kept, self._bounded, most))
            if logits.is_cuda and self._kept is logits:  # the next pass writes to where they are
                self._kept = logits.clone()
        order = greedy + free + self._bounded
        self.ids = found[0]
        if len(found) > 1:
            self.ids = torch.cat(found)[sent(sorted(range(len(order)), key=order.__getitem__), logits.device)]
        self._known = None
        if logits.is_cuda:
            self._copied = self.ids.to("cpu", non_blocking=True)
            self._known = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._known.record(torch.cuda.current_stream(logits.device))
        else:
            self._copied = self.ids
        self.anew: set[int] = set()
        """Rows of which ``ids`` had no token, only ``tokens`` does."""

    @torch.inference_mode()
    def tokens(self) -> list[int]:
        """The token id of each row; -1 where the logits are no numbers."""
        if self._known is not None:
            self._known.synchronize()
        chosen: list[int] = self._copied.tolist()
        for most in (min(_WIDER, self._whole), self._whole):
            wide = [number for number, row in enumerate(self._bounded) if chosen[row] == _MORE]
            if not wide:
                break
            rows = [self._bounded[number] for number in wide]
            drawn = self._draw(_bounded, _rows(self._kept, wide), rows, most)
            self.anew.update(rows)
            for row, token in zip(rows, drawn.tolist(), strict=True):
                chosen[row] = token
        return chosen

    def _draw(
        self, function: Callable[..., torch.Tensor], logits: torch.Tensor, rows: list[int], *given: int
    ) -> torch.Tensor:
        """``logits`` are those of ``rows``."""
        filters = sent([_filters(self._params[row], self._whole) for row in rows], logits.device, torch.float32)
        return function(logits, filters, sent([[self._keys[row]] for row in rows], logits.device), *given)


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], dice: Sequence[random.Random]) -> list[int]:
    """A token id for each row of logits (rows, vocabulary), as ``Draw`` draws them; each takes a key from its dice."""
    return Draw(logits, params, [own.getrandbits(62) for own in dice]).tokens()


def sent(values: Any, device: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers as a tensor there. Nobody waits until a GPU has done what it was told before."""
    return pinned(values, device, dtype).to(device, non_blocking=True)


def pinned(values: Any, device: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers as a tensor on the host, from where ``device`` can copy it by itself.

    ``dtype``: of fractions, or another thread's load may have changed which they are.
    """
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


def _rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return logits if len(rows) == len(logits) else logits[sent(rows, logits.device)]


def _filters(own: SamplingParams, whole: int) -> tuple[float, ...]:
    # Logits divided by less would be infinite; of 0 only our kernel knows, which then divides nothing.
    temperature = max(own.temperature, 1e-30) if own.temperature > 0 else 0.0
    return temperature, own.min_p, max(own.top_p, 1e-9), min(own.top_k, whole) if own.top_k > 0 else whole


def _free(logits: torch.Tensor, filters: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Token ids (rows,) drawn from all, less those under min-p; -1 where the logits are no numbers.

    ``filters``: (rows, 4): temperature, min-p, top-p, top-k; ``keys``: (rows, 1), integers.
    """
    temperature, min_p, _, _ = filters[:, :, None].unbind(1)
    values = (logits.float() / temperature).softmax(-1)
    highest = values.amax(-1, keepdim=True)
    left = torch.where(values < min_p * highest, 0.0, values)
    ids = torch.arange(values.shape[-1], device=values.device)
    found = (left / _exponential(ids, keys)).argmax(-1)
    return torch.where(torch.isfinite(highest[:, 0]), found, -1)


def _by_kernel(logits: torch.Tensor, filters: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The same by all filters."""
    logits, out = logits.float().contiguous(), keys.new_empty(logits.shape[0])
    run_kernel("llmsvc_draw", logits, filters, keys, out, *logits.shape)
    return out


def _bounded(logits: torch.Tensor, filters: torch.Tensor, keys: torch.Tensor, most: int) -> torch.Tensor:
    """The same by all filters from the likeliest ``most``; _MORE where they may reach beyond these.

    The likeliest always stays.
    """
    temperature, min_p, top_p, top_k = filters[:, :, None].unbind(1)
    values, ids = (logits.float() / temperature).softmax(-1).topk(most)
    left = torch.where(torch.arange(most, device=values.device) >= top_k, 0.0, values)
    # Top-p counts what top-k has left.
    share = left / torch.where(top_k <= most, left.sum(-1, keepdim=True), 1.0)
    before = share.cumsum(-1) - share
    too_small = min_p * values[:, :1]
    enough = (before[:, -1:] >= top_p) | (values[:, -1:] < too_small) | (top_k <= most)
    left = torch.where(((before >= top_p) & (top_p < 1)) | (values < too_small), 0.0, left)
    found = ids.gather(1, (left / _exponential(ids, keys)).argmax(-1, keepdim=True))
    found = torch.where(enough, found, _MORE)
    return torch.where(torch.isfinite(values[:, :1]), found, -1)[:, 0]


def _exponential(ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """A number of mean 1, exponentially distributed, for each of ``ids``, the same for the same key: SplitMix64 (Steele
    et al. 2014) of both."""
    mixed = keys + (ids + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << 64 - shift) - 1))) * factor
    uniform = (((mixed >> 12) & ((1 << 52) - 1)).double() + 0.5) / 2**52
    return -uniform.log()


def penalized(logits: torch.Tensor, penalty: float, seen: torch.Tensor) -> torch.Tensor:
    """``logits`` with those of the token ids in ``seen`` made less likely (CTRL, Keskar et al. 2019)."""
    found = logits[seen]
    return logits.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def make_dice(params: SamplingParams) -> random.Random:
    """A request's own; seeded where it asks for that."""
    return random.Random(params.seed)
