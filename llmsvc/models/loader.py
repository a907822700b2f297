"""From a folder to a model in memory. Safetensors only: no pickle, no remote code."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, LlmsvcError
from llmsvc.formats.families import PLAIN_TEMPLATE
from llmsvc.models import adapters, quantised
from llmsvc.models.folder import check_folder, check_words, generation_config, has_tokenizer, sampling
from llmsvc.models.forecast import Weights, forecast, plan
from llmsvc.models.headers import Contents, read, weight_files
from llmsvc.models.parts import composite, effective, model_class, used
from llmsvc.models.progress import Cancelled, Progress
from llmsvc.models.verify import check_answers, check_finite, check_loaded, check_quantised, load_error, sees

__all__ = ["LoadedModel", "check_folder", "guess_device", "held_bytes", "load", "pick_device"]


@dataclass(frozen=True)
class LoadedModel:
    """Weights and tokenizer, ready for an engine."""

    model: Any
    tokenizer: Any
    device: str
    dtype: str
    """What the weights really are: "fp32", "bf16", "int8 weights", "4-bit weights", "int8", "nf4", "fp4"."""
    window: int
    memory_bytes: int
    plain_template: bool
    checkpoint: str = "none"
    """How the files are quantised, by ``quantised.checkpoint_kind``."""
    parts: str = "all"
    """"text": the language model alone of one that also sees or hears."""
    note: str = ""
    """A sentence for the model's card."""
    sampling: dict[str, float] = field(default_factory=dict)
    """What the model's authors sample with, by ``generation.sampling``."""


@dataclass(frozen=True)
class _Source:
    """Where a model comes from: its folder, the base model of an adapter, and that one's config.json."""

    folder: Path
    base: Path
    config: dict[str, Any]

    @property
    def adapter(self) -> bool:
        return self.folder != self.base

    @property
    def words(self) -> Path:
        """The folder of the tokenizer: an adapter may bring its own."""
        return self.folder if has_tokenizer(self.folder) else self.base


def load(
    folder: Path,
    device: str,
    quantization: str,
    progress: Progress,
    *,
    full_weights: bool = False,
    context: int = 0,
    kernels: Path | None = None,
    resolve: Callable[[str], Path] | None = None,
) -> LoadedModel:
    """Load weights on ``device`` ("auto", "cpu", "cuda", "cuda:1").

    ``full_weights``: round none without being asked to. ``context``: tokens that it is to read at most; 0 for as many
    as it was made for. ``kernels``: where what is compiled for products of 8-bit weights is kept; None: nothing is.
    ``resolve``: the folder of an adapter's base model, by its id; raises what it likes.
    Raises BadRequest for a folder or an argument that can never work, Unavailable when loading failed.
    """
    source = _source(folder, resolve)
    contents = effective(read(source.base))
    _read_ahead(source.base)
    progress("Starting torch and transformers", 0, 0)
    import transformers

    from llmsvc.engine import int8
    from llmsvc.models.as_stored import widen

    transformers.logging.set_verbosity_error()
    transformers.logging.set_tqdm_hook(_bar)
    target = pick_device(device)
    weights = _weights(source, contents, target, quantization, full_weights)
    expected = forecast(contents, weights)
    aside = ThreadPoolExecutor(1, "tokenizer")  # it takes as long as half a billion weights
    reading = aside.submit(
        transformers.AutoTokenizer.from_pretrained, source.words, local_files_only=True, trust_remote_code=False
    )

    def tell(stage: str, share: float) -> None:
        if reading.done():
            reading.result()  # a broken one ends the load
        progress(stage, int(share * expected.weights_bytes), expected.weights_bytes)

    told = _progress.set(partial(tell, "Loading the weights"))
    try:
        with aside:
            tell("Loading the weights", 0)
            model = _model(source, weights, target)
            tokenizer = reading.result()
            check_words(tokenizer, model, folder.name)
            if weights.rounded:
                int8.quantize_linears(model, kernels, partial(tell, "Rounding the weights"))
            check_quantised(model, weights.quantization, folder.name)
            check_finite(model, folder.name)
            if sees(source.config):
                check_answers(model, folder.name)
    except (Cancelled, LlmsvcError):
        raise
    except Exception as error:  # the library raises whatever a broken file makes it raise
        raise load_error(folder.name, error) from error
    finally:
        _progress.reset(told)
    if weights.stored:
        widen(model)
    plain = not tokenizer.chat_template
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    progress("Starting", expected.weights_bytes, expected.weights_bytes)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=target,
        dtype=_dtype(source, model, weights),
        window=min(expected.window, context or expected.window),
        memory_bytes=held_bytes(model),
        plain_template=plain,
        checkpoint=quantised.checkpoint_kind(source.config),
        parts="text" if composite(source.config) else "all",
        note=_note(source),
        sampling=sampling(source.words if (source.words / "generation_config.json").is_file() else source.base),
    )


def _source(folder: Path, resolve: Callable[[str], Path] | None) -> _Source:
    check_folder(folder)
    base = folder
    if adapters.is_adapter(folder):
        wanted = adapters.base_of(folder)
        if resolve is None:
            raise BadRequest(f"{folder.name} is an adapter for {wanted}. Load that one, or merge the two with peft.")
        base = resolve(wanted)
        check_folder(base)
    return _Source(folder, base, json.loads((base / "config.json").read_text()))


def _weights(source: _Source, contents: Contents, device: str, quantization: str, full_weights: bool) -> Weights:
    """How the weights are held. Raises BadRequest for what cannot be done with this checkpoint."""
    planned = plan(contents, device, quantization, full_weights)
    own = quantised.kept(source.config)
    if own and source.adapter:
        raise BadRequest(
            f"{source.folder.name} is an adapter for a model in bitsandbytes' {own}, and can be added to whole weights "
            "only. Load the adapter on the original model, or merge the two with peft."
        )
    if own and quantization not in ("none", own):
        raise BadRequest(
            f"{source.folder.name} is already quantised to {own} by bitsandbytes, and stays so. Load it with "
            f'quantization "none", or load the original model in {quantization}.'
        )
    if own:
        return Weights(False, False, "none")
    if trouble := quantised.refuse_width(contents.tensors, quantization, device):
        raise BadRequest(f"{source.folder.name}: {trouble}")
    return planned


def _model(source: _Source, weights: Weights, device: str) -> Any:
    """Raises Unavailable, naming the tensor, when something of it was not loaded."""
    import torch
    import transformers

    from llmsvc.models.checkpoint import Checkpoint

    config = transformers.AutoConfig.from_pretrained(source.base, local_files_only=True, trust_remote_code=False)
    made, config = model_class(config, keep_quantised=bool(quantised.kept(source.config)))
    with _ONE_AT_A_TIME, Checkpoint(source.base, source.config) as checkpoint:
        if source.adapter:
            adapters.merge(checkpoint.weights, source.folder, partial(used, config=source.config))
        model, report = made.from_pretrained(
            None,
            config=config,
            state_dict=checkpoint.weights,
            dtype=torch.float32 if weights.precise else torch.bfloat16,
            device_map=device,
            quantization_config=_quantization(weights),
            ignore_mismatched_sizes=True,  # they are looked at below, where they can be named
            output_loading_info=True,
        )
        check_loaded(model, report, checkpoint.tensor, source.folder.name)
    model.config.name_or_path = str(source.base)
    model.generation_config = generation_config(source.words, source.base)
    model.eval()
    return model


def _dtype(source: _Source, model: Any, weights: Weights) -> str:
    if own := quantised.kept(source.config):
        return own
    if weights.quantization != "none":
        return weights.quantization
    if weights.rounded:
        return "4-bit weights" if getattr(model.config, "weights_of_4_bits", ()) else "int8 weights"
    return "fp32" if weights.precise else "bf16"


def _note(source: _Source) -> str:
    kind = quantised.checkpoint_kind(source.config)
    said = []
    if quantised.treatment(source.config, "").dequantised:
        said.append(f"Its {kind} weights were unpacked.")
    if composite(source.config):
        said.append("It reads text only here.")
    if source.adapter:
        said.append(f"An adapter on {source.base.name}.")
    return " ".join(said)


def _read_ahead(folder: Path) -> None:
    """Have the system read the files while torch is imported, in one go instead of where they are touched."""
    if hasattr(os, "posix_fadvise"):
        for path in weight_files(folder):
            with suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


_ONE_AT_A_TIME = threading.Lock()
"""transformers replaces functions of torch's and its own while it loads, in all threads: of two at once the later puts
back what the earlier had put there, and from then on no model ties its output layer to its embeddings."""

_progress: "ContextVar[Callable[[float], None] | None]" = ContextVar("progress", default=None)
"""Whom to tell of the load that this thread is in; transformers has one hook for all."""


def _bar(factory: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Stands where transformers would draw a bar; what raises in it ends the load."""
    tell = _progress.get()
    if tell is None or not arguments:
        return factory(*arguments, **{**options, "disable": True})
    items = list(arguments[0])
    return _told(items, tell)


def _told(items: list[Any], tell: Callable[[float], None]) -> Iterator[Any]:
    for number, item in enumerate(items):
        tell(number / len(items))
        yield item


def held_bytes(model: Any) -> int:
    """Bytes of a model's tensors, with the scales that bitsandbytes keeps beside its weights."""
    from llmsvc.engine.parking import held_tensors

    return sum({tensor.data_ptr(): tensor.nbytes for tensor in held_tensors(model)}.values())


def pick_device(wanted: str) -> str:
    """The device to use. Raises BadRequest for a GPU that is not there."""
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise BadRequest(f"There is no device {wanted} here: torch sees {torch.cuda.device_count()} GPUs.")
        return f"cuda:{index}"
    return wanted


def guess_device(wanted: str) -> str:
    """The same as far as it can be said while torch is not imported yet."""
    return pick_device(wanted) if "torch" in sys.modules else "cpu" if wanted == "auto" else wanted


def _quantization(weights: Weights) -> Any:
    """What transformers is to do with the weights while it loads them, if anything."""
    import torch
    from transformers import BitsAndBytesConfig

    from llmsvc.models.as_stored import AsStored

    if weights.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if weights.quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(weights.stored)
    return stored and AsStored(stored)
