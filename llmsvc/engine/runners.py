"""Which runner a model gets: the fastest one that says what the model says."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llmsvc.engine.cache.kinds import FULL, KNOWN, NONE, SLIDING, kinds_of
from llmsvc.engine.compute import at_once
from llmsvc.engine.own_cache_runner import OwnCacheRunner
from llmsvc.engine.paged_runner import PagedRunner
from llmsvc.engine.runner import Runner
from llmsvc.engine.slot_runner import SlotRunner
from llmsvc.errors import Unavailable

log = logging.getLogger(__name__)

SLOTS, PAGED_SLOTS = 32, 128
TOKENS, LONGEST, NEXT = 24, 1024, 2
"""Tokens of a text by which runners are compared, at most, and how many are decoded behind it."""
EXACT, WRONG = 1e-3, 0.5
"""Shares of the logits: by which they differ in 32 bits at most, and by which nothing differs that is only rounded."""
_MIXED = (
    "The model says something else when it goes on with a text than when it reads it whole, so chats would mix. This "
    "version of transformers cannot serve it; choose another model."
)

Do = Callable[..., Any]
"""Calls a function with arguments where the device's passes are made, and gives what it gives."""


def make_runner(
    model: Any, slots: int, window: int, chunk: int, budget: int, paged: bool | None, do: Do | None = None
) -> Runner:
    """A runner of so many ``slots``, or of as many as suit it; ``budget``: bytes for what it caches.

    ``paged``: whether that is to be in pages; None: where it is best. What differs from the model's own pass, with its
    own cache, is not taken. Each pass is a call of its own of ``do``, so that answers of others come in between. Raises
    Unavailable for a model that cannot even make that pass, or does not go on with a text as if it read it whole.
    """
    comparison = _Comparison(model, window, do or at_once)
    on_device = model.device.type != "cpu"
    kinds = comparison.kinds
    paged = on_device and kinds <= {FULL, SLIDING, NONE} if paged is None else paged
    # Beside each other slots take as much as the longest of them on a GPU, where memory is not given by the page.
    within = budget if on_device else 0
    tried: list[Callable[[], Runner]] = []
    if paged:
        tried.append(lambda: PagedRunner.within(model, slots or PAGED_SLOTS, window, chunk or 2048, budget))
    elif kinds and kinds <= KNOWN:
        tried += [lambda: SlotRunner(model, slots or SLOTS, window, within=within)]
        tried += [lambda: SlotRunner(model, slots or SLOTS, window, by_chunks=False, within=within)]
    tried.append(lambda: OwnCacheRunner(model, slots or SLOTS, window))
    attention = model.config._attn_implementation
    for make in tried:
        try:
            runner: Runner = comparison.do(make)
            if comparison.agrees(runner):
                return runner
        except Exception as failure:
            log.info("the model is not computed together with others: %s", failure)
        model.config._attn_implementation = model.config.get_text_config()._attn_implementation = attention
    plain = OwnCacheRunner(model, slots or SLOTS, window, keeps=False)
    comparison.check_generate(plain)
    return plain


class _Comparison:
    """Of runners with a model's own pass over whole texts.

    Raises Unavailable for a model that cannot make one.
    """

    def __init__(self, model: Any, window: int, do: Do) -> None:
        self._model, self._window, self.do = model, window, do
        self.kinds = _kinds(model)
        rounded = any(not _is_plain(module) for module in model.modules())
        self._precise = model.dtype == torch.float32 and not rounded
        self._texts = [self._text(self._length(), 0), self._text(self._length() - 7, 7)]
        try:
            self._exact = self._whole(OwnCacheRunner(model, 1, window, keeps=False))
        except Exception as failure:
            log.warning("the model's own pass ends in %s: %s", type(failure).__name__, failure)
            raise Unavailable("This version of transformers cannot run the model. Choose another model.") from failure
        if not torch.isfinite(self._exact).all():
            raise Unavailable("The model's answers are no numbers: its weights are damaged. Download them again.")

    @torch.inference_mode()
    def agrees(self, runner: Runner) -> bool:
        """Whether a runner says what the model says; it reads token by token behind a state where it must for that."""
        allowed = EXACT if self._precise else 0.1
        for continues in (True, False):
            runner.continues = continues
            error = _error(self._in_pieces(runner), self._exact)
            if error <= allowed or runner.costs.cut:
                break
        if not runner.together:  # there is hardly anything better
            allowed = 20 * EXACT if self._precise else WRONG
        if error > allowed:
            log.info("%s differs from the model by %.2g", type(runner).__name__, error)
        return error <= allowed

    def check_generate(self, plain: OwnCacheRunner) -> None:
        """Raises Unavailable for a model that says something else in ``generate`` than in a pass over a whole text."""
        try:
            errors = [self._from_generate(plain, length) for length in (5, 20, 70)]  # some know only certain lengths
        except Exception as failure:
            log.warning("going on with a text ends in %s: %s", type(failure).__name__, failure)
            raise Unavailable(
                "This version of transformers cannot let the model go on with a text that it has read. Choose another "
                "model."
            ) from failure
        if max(errors) > (EXACT if self._precise else 0.1):
            raise Unavailable(_MIXED)

    def _length(self) -> int:
        """Where a layer's kind is not known, texts are longer than what such layers are wont to look at."""
        config = self._model.config.get_text_config()
        sight = max((getattr(config, name, None) or 0 for name in ("sliding_window", "index_topk")), default=0)
        return TOKENS if self.kinds <= KNOWN else min(TOKENS + 2 * sight, LONGEST)

    def _text(self, length: int, shift: int) -> list[int]:
        """Tokens of a text, with those that are decoded behind it."""
        most = max(min(250, self._model.config.get_text_config().vocab_size - 3), 1)
        length = max(min(length, self._window - NEXT - 1), 1)
        return [(shift + 3 * n) % most + min(3, most - 1) for n in range(length + NEXT)]

    @torch.inference_mode()
    def _whole(self, runner: Runner) -> torch.Tensor:
        """Logits behind the last tokens of both texts, each of which is read whole."""
        read = []
        for text in self._texts:
            read.append(self.do(runner.prefill, 0, text, 0, NEXT + 1).float().clone())
            runner.reset()
        return torch.cat(read)

    def _in_pieces(self, runner: Runner) -> torch.Tensor:
        """The same, of texts that are read in pieces and decoded side by side."""
        rows, lengths = [list[torch.Tensor](), list[torch.Tensor]()], [len(text) - NEXT for text in self._texts]
        for slot, (text, length) in enumerate(zip(self._texts, lengths, strict=True)):
            cut = length // 2 if slot else 0
            if cut:
                self.do(runner.prefill, slot, text[:cut], 0)
            rows[slot].append(self.do(runner.prefill, slot, text[cut:length], cut)[-1].float().clone())
        for slots in ((1,), (0,), *(((0, 1),) * (NEXT - 1))):  # alone, then side by side
            tokens = {slot: self._texts[slot][lengths[slot]] for slot in slots}
            logits = self.do(runner.decode, tokens, lengths)
            for row, slot in enumerate(slots):
                rows[slot].append(logits[row].float().clone())
                lengths[slot] += 1
        runner.reset()
        return torch.stack([*rows[0], *rows[1]])

    @torch.inference_mode()
    def _from_generate(self, plain: OwnCacheRunner, length: int) -> float:
        """By which share a runner differs from what ``generate`` says behind a text, in two tokens."""
        text = self._text(length, 0)[:-NEXT]
        said = self.do(self._generate, text)
        following = said.sequences[0, len(text) :].tolist()[:1]
        read = [self.do(plain.prefill, 0, text, 0)[-1], self.do(plain.prefill, 0, following, len(text))[-1]]
        plain.reset()
        return _error(torch.stack(read).float(), torch.cat([logits.float() for logits in said.logits]))

    def _generate(self, text: list[int]) -> Any:
        ids = torch.tensor([text], device=self._model.device)
        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=2,
            min_new_tokens=2,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )


def _error(read: torch.Tensor, exact: torch.Tensor) -> float:
    return float((read - exact).norm() / (exact.norm() + 1e-6))


def _kinds(model: Any) -> set[str]:
    """The kinds of a model's layers; none where it does not say."""
    try:
        return {kind.name for kind in kinds_of(model.config.get_text_config())}
    except Exception as error:
        log.info("the model's layers are not known: %s", error)
        return set()


def _is_plain(module: Any) -> bool:
    """Whether a module multiplies by weights as they are, not rounded ones."""
    states: Iterator[Any] = (getattr(weight, "quant_state", None) for weight in module.parameters(recurse=False))
    return not hasattr(module, "scales") and all(state is None for state in states)
