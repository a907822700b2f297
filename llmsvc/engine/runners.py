"""Which runner a model gets: the fastest one that says what the model says."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from llmsvc.engine.cache.kinds import FULL, KNOWN, NONE, SLIDING, kinds_of
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


def make_runner(model: Any, slots: int, window: int, chunk: int, budget: int, paged: bool | None) -> Runner:
    """A runner of so many ``slots``, or of as many as suit it; ``budget``: bytes for what it caches.

    ``paged``: whether that is to be in pages; None: where it is best. What differs from the model's own pass, with its
    own cache, is not taken. Raises Unavailable for a model that cannot even make that pass.
    """
    kinds = _kinds(model)
    if paged is None:
        paged = model.device.type != "cpu" and kinds <= {FULL, SLIDING, NONE}
    plain = OwnCacheRunner(model, slots or SLOTS, window, keeps=False)
    texts = _texts(window, model, kinds)
    try:
        exact = _exact(plain, texts)
    except Exception as failure:
        log.warning("the model's own pass ends in %s: %s", type(failure).__name__, failure)
        raise Unavailable("This version of transformers cannot run the model. Choose another model.") from failure
    if not torch.isfinite(exact).all():
        raise Unavailable("The model's answers are no numbers: its weights are damaged. Download them again.")
    tried: list[Callable[[], Runner]] = []
    if paged:
        tried.append(lambda: PagedRunner.within(model, slots or PAGED_SLOTS, window, chunk or 2048, budget))
    elif kinds and kinds <= KNOWN:
        tried += [lambda: SlotRunner(model, slots or SLOTS, window)]
        tried += [lambda: SlotRunner(model, slots or SLOTS, window, by_chunks=False)]
    tried.append(lambda: OwnCacheRunner(model, slots or SLOTS, window))
    attention = model.config._attn_implementation
    for make in tried:
        try:
            runner = make()
            error = _continues(runner, texts, exact, model)
            if error <= _allowed(model, together=runner.together):
                return runner
            log.info("%s differs from the model by %.2g", type(runner).__name__, error)
        except Exception as failure:
            log.info("the model is not computed together with others: %s", failure)
        _attend_by(model, attention)
    for length in (5, 20, 70):  # some know only certain lengths
        _check(plain, model, [(3 * n) % 250 + 3 for n in range(min(length, window - 2))])
    return plain


def _check(plain: OwnCacheRunner, model: Any, text: list[int]) -> None:
    """Raises Unavailable for a model that says something else in ``generate`` than in a pass over the whole text."""
    try:
        error = _from_generate(plain, model, text)
    except Exception as failure:
        log.warning("going on with a text ends in %s: %s", type(failure).__name__, failure)
        raise Unavailable(
            "This version of transformers cannot let the model go on with a text that it has read. Choose another "
            "model."
        ) from failure
    if error > _allowed(model):
        raise Unavailable(
            "The model says something else when it goes on with a text than when it reads it whole, so chats "
            "would mix. This version of transformers cannot serve it; choose another model."
        )


def _from_generate(plain: OwnCacheRunner, model: Any, text: list[int]) -> float:
    """By which share a runner differs from what ``generate`` says behind a text, in two tokens."""
    ids = torch.tensor([text], device=model.device)
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=2,
        min_new_tokens=2,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    found = [
        plain.prefill(0, text, 0)[-1],
        plain.prefill(0, said.sequences[0, len(text) :].tolist()[:1], len(text))[-1],
    ]
    plain.reset()
    exact = torch.cat([logits.float() for logits in said.logits])
    return float((torch.stack(found).float() - exact).norm() / (exact.norm() + 1e-6))


def _continues(runner: Runner, texts: list[list[int]], exact: torch.Tensor, model: Any) -> float:
    """By which share a runner differs from the model; it reads token by token behind a state where it must."""
    for continues in (True, False):
        runner.continues = continues
        found = _says(runner, texts)
        error = float((found - exact).norm() / (exact.norm() + 1e-6))
        if error <= _allowed(model) or runner.costs.cut:
            break
    return error


def _kinds(model: Any) -> set[str]:
    """The kinds of a model's layers; none where it does not say."""
    try:
        return {kind.name for kind in kinds_of(model.config.get_text_config())}
    except Exception as error:
        log.info("the model's layers are not known: %s", error)
        return set()


def _attend_by(model: Any, name: str) -> None:
    model.config._attn_implementation = model.config.get_text_config()._attn_implementation = name


def _texts(window: int, model: Any, kinds: set[str]) -> list[list[int]]:
    """Two texts by which runners are compared, with the tokens that are decoded behind them.

    Where a layer's kind is not known they are longer than what such layers are wont to look at.
    """
    config = model.config.get_text_config()
    sight = max((getattr(config, name, None) or 0 for name in ("sliding_window", "index_topk")), default=0)
    tokens = TOKENS if kinds <= KNOWN else min(TOKENS + 2 * sight, LONGEST)
    lengths = [min(tokens, window - NEXT - 1), min(tokens - 7, window - NEXT - 1)]
    return [[(7 * n + 3 * k) % 250 + 3 for k in range(length + NEXT)] for n, length in enumerate(lengths)]


@torch.inference_mode()
def _exact(runner: Runner, texts: list[list[int]]) -> torch.Tensor:
    """Logits behind the last tokens of both texts, each of which is read whole."""
    found = []
    for text in texts:
        found.append(runner.prefill(0, text, 0, NEXT + 1).float().clone())
        runner.reset()
    return torch.cat(found)


@torch.inference_mode()
def _says(runner: Runner, texts: list[list[int]]) -> torch.Tensor:
    """The same, of texts that are read in pieces and decoded side by side."""
    found, lengths = [list[torch.Tensor](), list[torch.Tensor]()], [len(text) - NEXT for text in texts]
    for slot, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        cut = length // 2 if slot else 0
        if cut:
            runner.prefill(slot, text[:cut], 0)
        found[slot].append(runner.prefill(slot, text[cut:length], cut)[-1].float().clone())
    for slots in ((1,), (0,), *(((0, 1),) * (NEXT - 1))):  # alone, then side by side
        logits = runner.decode({slot: texts[slot][lengths[slot]] for slot in slots}, lengths)
        for row, slot in enumerate(slots):
            found[slot].append(logits[row].float().clone())
            lengths[slot] += 1
    runner.reset()
    return torch.stack([*found[0], *found[1]])


def _allowed(model: Any, *, together: bool = True) -> float:
    """How much of logits rounding may make another; more where there is nothing better."""
    rounded = any(not module_is_plain(module) for module in model.modules())
    if model.dtype == torch.float32 and not rounded:
        return EXACT if together else 20 * EXACT
    return 0.1 if together else WRONG


def module_is_plain(module: Any) -> bool:
    """Whether it multiplies by weights as they are, not rounded ones."""
    return not hasattr(module, "scales") and getattr(module, "quant_state", None) is None
