"""``python -m llmsvc.models.convert MODEL.gguf FOLDER``: GGUF to safetensors in bfloat16.

Prints its progress as JSON lines ``{"stage", "done", "total"}``, and why it refuses a file as the last line of its
errors; runs as a child of the service.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, LlmsvcError
from llmsvc.models.can_it_run import verdict
from llmsvc.models.headers import read
from llmsvc.models.verify import check_finite, check_loaded


def _say(stage: str, done: int, total: int) -> None:
    print(json.dumps({"stage": stage, "done": done, "total": total}), flush=True)


def convert(gguf: Path, folder: Path) -> None:
    """Write ``folder`` as ``from_pretrained`` reads it: config, tokenizer, chat template, weights.

    Raises BadRequest for a file that cannot be read, Unavailable for one whose tensors are not those of its
    architecture.
    """
    if reason := verdict(read(gguf)).reason:
        raise BadRequest(reason)
    _say("Preparing the tokenizer", 0, 4)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    _say("Converting the weights", 1, 4)
    model, report = AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        ignore_mismatched_sizes=True,  # they are looked at below, where they can be named
        output_loading_info=True,
    )
    check_loaded(model, report, lambda _: None, gguf.name)
    check_finite(model, gguf.name)
    _say("Writing safetensors", 3, 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _say("Writing safetensors", 4, 4)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except LlmsvcError as error:
        sys.exit(str(error).removeprefix(f"{Path(sys.argv[1]).name} could not be loaded: "))
