"""The model's forward pass on a GPU, over a paged KV cache. Knows tensors, no queues.

What is short, of many slots at once (tokens that are decoded, short prompts, the end of a long one, guesses that are
verified), goes through the model as one row of tokens, whose work is recorded once for each of a few lengths and then
replayed (CUDA graphs): launching its thousand kernels one by one takes longer than computing them. Long pieces of
prompts go through the model as it is.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from llmsvc.engine import gemv
from llmsvc.engine.cache.kinds import kinds_of
from llmsvc.engine.cache.masks import Masks
from llmsvc.engine.cache.placed import Piece
from llmsvc.engine.cache.probe import pass_over_one
from llmsvc.engine.chunk_attention import attend
from llmsvc.engine.paged_attention import PAGE, paged_attention
from llmsvc.engine.pages import SCRATCH, OutOfPages, PagedCache, PageTable, pages_of
from llmsvc.engine.runner import Costs, Runner
from llmsvc.engine.sampling import pinned, sent

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of the passes that are recorded."""
LOGITS = 128
"""Of so many tokens at most a longer pass gives logits."""
WORK = 512 * 512
"""Of a piece of prompt, tokens times positions, up to which it is short: each token reads its keys anew."""
FIRST_PAGES = 256
"""Pages at first; there are twice as many whenever they are all taken."""

Graph = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class PagedRunner(Runner):
    """Many sequences whose keys and values lie in pages.

    ``follows``: whether the model's attention follows the table, so that many slots are computed at once;
    ``recording``: whether short passes are recorded. A model that cannot is served without, more slowly.
    ``patient``: whether it waits while another one records, instead of doing without meanwhile.
    """

    ahead = moves = True

    def __init__(self, model: Any, slots: int, window: int, tokens: int, costs: Costs | None = None) -> None:
        """``tokens``: how many can be cached in all slots together."""
        config = model.config.get_text_config()
        self.slots, self.costs = slots, costs or _measured(model)
        self._model, self._device = model, model.device
        if self._device.type == "cuda":  # it plans attention anew for each length, which takes a tenth of a second
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._layers, self._window = config.num_hidden_layers, window
        self._masks = Masks(model, kinds_of(config))
        self._most = max(pages_of(tokens), pages_of(window)) + 1
        self._follows = self.recording = self.patient = False
        self._graphs: dict[int, Graph] = {}
        self._tried = set[int]()
        """Sizes of passes whose kernels are there."""
        self._memory: Any = None
        """What the recorded passes share: one ends before the next begins."""
        self.reset()

    @classmethod
    def within(cls, model: Any, slots: int, window: int, chunk: int, budget: int) -> "PagedRunner":
        """One whose cache takes so many bytes at most, or one text of the window."""
        costs = _measured(model)
        tokens = max(budget // max(costs.token, 1), window + chunk)
        return cls(model, slots, window, tokens + slots * PAGE, costs)

    @property
    def compiled(self) -> dict[str, bool]:  # type: ignore[override]
        """What is faster than the model as it is, by kind."""
        return {"recorded": True} if self.recording else {}

    @property
    def follows(self) -> bool:
        return self._follows

    @follows.setter
    def follows(self, follows: bool) -> None:
        self._follows = follows

    def begin(self) -> None:
        self._follows = can_follow(self._model)

    def use(self, compiled: Mapping[str, Any]) -> None:
        self.recording = bool(compiled)

    def reset(self) -> None:
        """Forget every slot and give its memory back."""
        self._forget_passes()
        first = min(FIRST_PAGES, self._most)
        self._cache = PagedCache(self._layers, first)
        self._table = PageTable(self.slots + 1, first)
        # A row for each slot, the spare one, and one of the scratch page, for tokens that only fill up a pass.
        self._on_device = torch.full((self.slots + 2, pages_of(self._window)), SCRATCH, dtype=torch.int32)
        self._on_device = self._on_device.to(self._device)

    @property
    def most_tokens(self) -> int:  # type: ignore[override]
        """How many can be cached in all slots together, whatever their lengths."""
        return max((self._most - 1 - self.slots) * PAGE, self._window)

    def copy(self, source: int, slot: int, tokens: int, snapshot: int = 0) -> None:
        """It is copied when one is written."""
        self._table.share(source, slot, tokens)

    def snapshot(self, slot: int, number: int) -> None:
        """There are no states."""

    def forget(self, numbers: Sequence[int]) -> None:
        """There are none."""

    def at_rest(self) -> list[torch.Tensor]:
        """The tensors that hold the cache, which may be moved to elsewhere and back before the next pass."""
        self._forget_passes()  # they know where the pages lay
        return [tensor for layer in self._cache.used() for tensor in (layer.keys, layer.values)]

    def plain(self) -> None:
        """Take no recorded pass any more."""
        self.recording = False

    def drop(self, slot: int) -> None:
        """Forget one slot and give its pages back."""
        self._table.drop(slot)

    def short(self, tokens: int, start: int) -> bool:
        """Whether a piece of prompt can go along with tokens that are decoded."""
        return self.follows and tokens <= SIZES[-1] // 2 and tokens * (start + tokens) <= WORK

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int], start: int, wanted: int = 1) -> torch.Tensor:
        """Write ``tokens`` at positions ``start``… of ``slot``.

        Returns the logits of the last ``wanted`` of them, shape (wanted, vocabulary). Raises OutOfPages.
        """
        if wanted <= LOGITS and self.short(len(tokens), start):
            return self._pass([(slot, tokens, start)], list(range(len(tokens) - wanted, len(tokens))))
        end = start + len(tokens)
        self._write(slot, start, end)
        self._tell()
        positions = torch.arange(start, end, device=self._device)
        now, row = self._cache.now, self._on_device[slot].long()
        now.pages, now.offsets = row[positions // PAGE], positions % PAGE
        now.read, now.length = row[: pages_of(end)], end
        mask = self._masks.allowing(positions[None, None, :, None], end, end - 1)
        return self._forward(torch.tensor(tokens, device=self._device), positions, mask, wanted)

    @torch.inference_mode()
    def decode(
        self,
        tokens: dict[int, int],
        lengths: list[int],
        pieces: Sequence[Piece] = (),
        ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write one token in each slot of ``tokens``, and short pieces of prompts in others.

        ``lengths``: tokens already cached, by slot. ``ids``: (slots,), what the tokens are where only the device knows.
        Returns the logits of the decoded tokens in their order, then of the last of each piece, shape (slots and
        pieces, vocabulary). Raises OutOfPages.
        """
        rows = [(slot, [token], lengths[slot]) for slot, token in tokens.items()]
        if not self.follows:
            return torch.cat([self.prefill(*row) for row in (*rows, *pieces)])
        found, at = [], 0
        both: list[Piece] = [*rows, *pieces]
        while at < len(both):
            size, upto = 0, at
            while upto < len(both) and size + len(both[upto][1]) <= SIZES[-1] and upto - at < LOGITS:
                size += len(both[upto][1])
                upto += 1
            ends, total = [], 0
            for _, its, _ in both[at:upto]:
                total += len(its)
                ends.append(total - 1)
            found.append(self._pass(both[at:upto], ends, None if ids is None else ids[at:upto]))
            if upto < len(both):  # the next pass takes the memory of this one's logits
                found[-1] = found[-1].clone()
            at = upto
        return found[0] if len(found) == 1 else torch.cat(found)

    # Inside

    def _write(self, slot: int, start: int, end: int) -> None:
        """Have pages of its own for what is written."""
        if self._table.pages[self.slots] and slot != self.slots:  # what changed places has done so
            self._table.drop(self.slots)
        try:
            copies = self._table.write(slot, start, end)
        except OutOfPages:
            self._grow(self._table.wanted(slot, start, end) - self._table.free)
            copies = self._table.write(slot, start, end)
        if copies:
            self._cache.copy(copies)

    def _grow(self, missing: int) -> None:
        held = self._cache.pages
        more = min(max(held, missing), self._most - held)
        if more < missing:
            return  # who writes is told
        if self._cache.used():
            self._forget_passes()  # they know where the pages lay
            self._cache.grow(more)
        else:
            self._cache.pages += more
        self._table.add(more)

    def _tell(self) -> None:
        """Bring what has changed of the table to the GPU."""
        for slot in self._table.changed:
            if pages := self._table.pages[slot]:
                self._on_device[slot, : len(pages)] = sent(pages, self._device)
        self._table.changed.clear()

    def _pass(self, pieces: Sequence[Piece], wanted: list[int], ids: torch.Tensor | None = None) -> torch.Tensor:
        """One pass over tokens of many slots; the logits of those whose numbers are ``wanted``.

        ``ids``: what the first of them are.
        """
        given: list[list[int]] = []
        for slot, tokens, start in pieces:
            self._write(slot, start, start + len(tokens))
            given += [[token, start + n, slot, 0] for n, token in enumerate(tokens)]
        for row, number in zip(given, wanted, strict=False):
            row[3] = number
        self._tell()
        if self.recording:
            size = next(size for size in SIZES if size >= len(given))
            if graph := self._graph(size):
                given += [[0, 0, self.slots + 1, 0]] * (size - len(given))
                return graph(pinned(given, self._device), ids)[: len(wanted)]
        table = sent(given, self._device)
        if ids is not None:
            table[: len(ids), 0] = ids
        return self._row(table, len(wanted))

    def _graph(self, size: int) -> Graph | None:
        """The recorded pass over so many tokens; None while it cannot be recorded."""
        if size not in self._graphs and _recording.acquire(self.patient):
            try:
                self._graphs[size] = self._record(size)
            finally:
                _recording.release()
        return self._graphs.get(size)

    def _record(self, size: int) -> Graph:
        static = torch.zeros(size, 4, dtype=torch.long, device=self._device)
        static[:, 2] = self.slots + 1
        with fused(self._model, size):
            side = _side_stream(self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(1 if size in self._tried else 2):  # kernels are compiled and chosen
                    self._row(static, min(size, LOGITS))
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph, pool = torch.cuda.CUDAGraph(), self._memory or torch.cuda.graph_pool_handle()
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"),
            ):
                logits = self._row(static, min(size, LOGITS))
        self._memory = pool
        self._tried.add(size)

        def replay(given: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
            static.copy_(given, non_blocking=True)
            if ids is not None:
                static[: len(ids), 0] = ids
            graph.replay()
            return logits

        return replay

    def _forget_passes(self) -> None:
        self._graphs, self._memory = {}, None

    def _row(self, given: torch.Tensor, wanted: int) -> torch.Tensor:
        """``given``: (tokens, 4): id, position, slot, and in the first ``wanted`` rows whose logits are returned."""
        ids, positions, slots, chosen = given.unbind(1)
        tables, now = self._on_device[slots], self._cache.now
        now.pages = tables.gather(1, (positions // PAGE)[:, None])[:, 0].long()
        now.offsets, now.read = positions % PAGE, None
        length = (positions + 1).int()[:, None]

        def mask(_: str, window: int | None) -> torch.Tensor:
            start = torch.zeros_like(length) if window is None else (length - window).clamp(min=0)
            return torch.cat([length, start, tables], 1)[None, None]

        return self._forward(ids, positions, self._masks.by_kind(mask), chosen[:wanted])

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: Any, wanted: Any) -> torch.Tensor:
        """Logits of shape (wanted, vocabulary). Attention is ours where it follows the table, else the model's own."""
        output = self._model(
            input_ids=ids[None],
            attention_mask=mask,
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _measured(model: Any) -> Costs:
    cache, _ = pass_over_one(model, kinds_of(model.config.get_text_config()), None)
    return Costs(cache.token_bytes())


_recording = threading.Lock()
"""One records at a time. What another thread did on the stream would become part of the recording, and functions of an
architecture, which several models may share, are replaced meanwhile."""


@cache
def _side_stream(device: torch.device) -> Any:
    """One for all recordings: the library's matrix products keep memory for each stream that they were on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def follow_table(model: Any) -> bool:
    """Let a model's attention follow the table where it is told to; False for a model whose attention is its own."""
    return attend(model, "paged", paged_attention)


def can_follow(model: Any) -> bool:
    """Whether a model's attention follows the table, as it does from now on, and says the same then."""
    try:
        return follow_table(model) and says_the_same(model, False)
    except Exception as error:
        log.warning("each answer of the model is computed by itself: %s", error)
        return False


def says_the_same(model: Any, recording: bool) -> bool:
    """Whether a model says of many slots at once what it says of each; ``recording``: through recorded passes.

    Raises whatever it raises where it cannot. Compiles what such passes need. In slots of its own.
    """
    runner, found = PagedRunner(model, 3, 4 * PAGE, 12 * PAGE), []
    runner.patient = True
    for follows in (False, True):
        runner.follows = follows
        lengths = [PAGE + 5, 1, 2 * PAGE]
        for slot, length in enumerate(lengths):
            runner.prefill(slot, [(7 * slot + n) % 250 for n in range(length)], 0)
        runner.recording = recording and follows
        for rows in (1, 3):
            found.append(runner.decode({slot: 3 + slot for slot in range(rows)}, lengths).float())
            lengths = [length + (slot < rows) for slot, length in enumerate(lengths)]
        piece = (2, [5, 6, 7], lengths[2])
        found.append(runner.decode({0: 9, 1: 8}, lengths, [piece]).float())
        runner.recording = False
        runner.reset()
    mine, theirs = torch.cat(found[:3]), torch.cat(found[3:])
    error = float((mine - theirs).norm() / theirs.norm())
    log.info("passes over many slots differ by %.2g", error)
    return error < (5e-3 if model.dtype == torch.float32 else 0.1)


@contextmanager
def fused(model: Any, tokens: int) -> Iterator[None]:
    """Let this thread's passes over so many tokens take fewer and faster kernels: norms, rotations and MLPs compiled.

    For one token, linear layers are read by a kernel of ours. Other threads, and other models of the architecture,
    compute as they did.
    """
    thread, patched = threading.get_ident(), list[Any]()
    source: Any = sys.modules[type(model).__module__]
    rotate = getattr(source, "apply_rotary_pos_emb", None)

    def here(quick: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        def either(*given: Any, **named: Any) -> Any:
            return (quick if threading.get_ident() == thread else original)(*given, **named)

        return either

    def replace(module: Any, quick: Callable[..., Any]) -> None:
        if module not in patched:
            module.forward = here(quick, module.forward)
            patched.append(module)

    try:
        for module in model.modules():
            kind = type(module).__name__
            if tokens == 1:
                for one, quick in gemv.quicker(module):
                    replace(one, quick)
            if kind.endswith("RMSNorm") or (tokens > 1 and kind.endswith("MLP") and _plain(module)):
                replace(module, partial(_compiled(type(module).forward), module))
        if rotate is not None:
            source.apply_rotary_pos_emb = here(_compiled(rotate), rotate)
        yield
    finally:
        for module in patched:
            del module.forward
        if rotate is not None:
            source.apply_rotary_pos_emb = rotate


@cache
def _compiled(function: Any) -> Any:
    """One for all modules of a class: it takes milliseconds to set up."""
    return torch.compile(function)


def _plain(module: nn.Module) -> bool:
    """Whether its parts are plain linear layers and what has no weights."""
    return all(type(part) is nn.Linear or not list(part.parameters()) for part in module.children())
