"""From a folder to a model in memory. Safetensors only: no pickle, no remote code."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, Unavailable
from llmsvc.models.forecast import Weights, forecast, plan
from llmsvc.models.headers import read, weight_files
from llmsvc.models.progress import Cancelled, Progress

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which come without a chat template; the page says when it is used."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class LoadedModel:
    """Weights and tokenizer, ready for an engine."""

    model: Any
    tokenizer: Any
    device: str
    dtype: str
    window: int
    memory_bytes: int
    plain_template: bool


def check_folder(folder: Path) -> None:
    """Refuse what must not or cannot be loaded, before anything of it runs. Raises BadRequest."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise BadRequest(f"{folder} has no config.json, so it is not a Hugging Face model.") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"{folder / 'config.json'} cannot be read ({error}). Download the model again.") from None
    if not isinstance(config, dict):
        raise BadRequest(f"{folder / 'config.json'} is not a model's configuration. Download the model again.")
    if "auto_map" in config:
        raise BadRequest(f"{folder.name} wants to run its own Python code, which is never done. Choose another model.")
    if not any(folder.glob("*.safetensors")):
        raise BadRequest(f"{folder} has no safetensors weights. Pickled weights (.bin, .pt) are never loaded.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):  # transformers would make an empty one
        raise BadRequest(f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}). Download the model again.")


def load(
    folder: Path,
    device: str,
    quantization: str,
    progress: Progress,
    *,
    full_weights: bool = False,
    context: int = 0,
    kernels: Path | None = None,
) -> LoadedModel:
    """Load weights on ``device`` ("auto", "cpu", "cuda", "cuda:1").

    ``full_weights``: round none without being asked to. ``context``: tokens that it is to read at most; 0 for as many
    as it was made for. ``kernels``: where what is compiled for products of 8-bit weights is kept; None: nothing is.
    Raises BadRequest for a folder or an argument that can never work, Unavailable when loading failed.
    """
    check_folder(folder)
    contents = read(folder)
    _read_ahead(folder)
    progress("Starting torch and transformers", 0, 0)
    import torch
    import transformers

    from llmsvc.engine import int8
    from llmsvc.models.as_stored import widen

    transformers.logging.set_verbosity_error()
    transformers.logging.set_tqdm_hook(_bar)
    target = pick_device(device)
    weights = plan(contents, target, quantization, full_weights)
    expected = forecast(contents, weights)
    aside = ThreadPoolExecutor(1, "tokenizer")  # it takes as long as half a billion weights
    reading = aside.submit(
        transformers.AutoTokenizer.from_pretrained, folder, local_files_only=True, trust_remote_code=False
    )

    def tell(stage: str, share: float) -> None:
        if reading.done():
            reading.result()  # a broken one ends the load
        progress(stage, int(share * expected.weights_bytes), expected.weights_bytes)

    told = _progress.set(partial(tell, "Loading the weights"))
    try:
        with aside:
            tell("Loading the weights", 0)
            with _ONE_AT_A_TIME:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=torch.float32 if weights.precise else torch.bfloat16,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    device_map=target,
                    quantization_config=_quantization(weights),
                )
            tokenizer = reading.result()
    except Cancelled:
        raise
    except Exception as error:  # the library raises whatever a broken file makes it raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"{folder.name} could not be loaded: {first[0]}") from error
    finally:
        _progress.reset(told)
    model.eval()
    if weights.rounded:
        int8.quantize_linears(model, kernels, partial(tell, "Rounding the weights"))
    if weights.stored:
        widen(model)
    plain = not tokenizer.chat_template
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    progress("Starting", expected.weights_bytes, expected.weights_bytes)
    bits = "4-bit weights" if getattr(model.config, "weights_of_4_bits", ()) else "int8 weights"
    unquantized = bits if weights.rounded else "fp32" if weights.precise else "bf16"
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=target,
        dtype=unquantized if quantization == "none" else quantization,
        window=min(expected.window, context or expected.window),
        memory_bytes=held_bytes(model),
        plain_template=plain,
    )


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
