"""From a folder to a model in memory. Safetensors only: no pickle, no remote code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, Unavailable
from llmsvc.models.catalogue import context_of
from llmsvc.models.download import Progress

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which come without a chat template; the page says when it is used."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

QUANTIZATIONS = ("none", "int8", "nf4")

SMALL_BYTES = 2**31
"""Models up to here are computed with 8-bit weights and 32-bit activations on a CPU. In bf16 a token hangs on the shape
of the batch and on what was cached, since sums round differently, and it is small models that are often undecided."""


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
    folder: Path, device: str, quantization: str, progress: Progress, *, full_weights: bool = False
) -> LoadedModel:
    """Load weights on ``device`` ("auto", "cpu", "cuda", "cuda:1").

    ``full_weights``: round none without being asked to. Raises BadRequest for a folder or an argument that can never
    work, Unavailable when loading failed.
    """
    check_folder(folder)
    if quantization not in QUANTIZATIONS:
        raise BadRequest(f'Unknown quantization "{quantization}". Use one of: {", ".join(QUANTIZATIONS)}.')
    progress("Starting torch and transformers", 0, 3)
    import torch
    import transformers

    from llmsvc.engine.int8 import quantize_linears

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    target = pick_device(device)
    precise = target == "cpu" and quantization == "none" and _weight_bytes(folder) <= SMALL_BYTES
    progress("Reading the tokenizer", 1, 3)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        progress("Loading the weights", 2, 3)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if precise else torch.bfloat16,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            device_map=target,
            quantization_config=_quantization(quantization),
        )
    except Exception as error:  # the library raises whatever a broken file makes it raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"{folder.name} could not be loaded: {first[0]}") from error
    model.eval()
    rounded = precise and not full_weights and quantize_linears(model)
    plain = not tokenizer.chat_template
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    progress("Ready", 3, 3)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=target,
        dtype=("int8 weights" if rounded else "fp32" if precise else "bf16")
        if quantization == "none"
        else quantization,
        window=context_of(folder) or 2048,
        memory_bytes=int(model.get_memory_footprint()),
        plain_template=plain,
    )


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


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


def _quantization(name: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return None
