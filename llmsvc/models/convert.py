"""``python -m llmsvc.models.convert MODEL.gguf FOLDER``: GGUF to safetensors in bfloat16.

Prints its progress as JSON lines ``{"stage", "done", "total"}``; runs as a child of the service.
"""

import json
import sys
from pathlib import Path
from typing import Any


def _say(stage: str, done: int, total: int) -> None:
    print(json.dumps({"stage": stage, "done": done, "total": total}), flush=True)


def convert(gguf: Path, folder: Path) -> None:
    """Write ``folder`` as ``from_pretrained`` reads it: config, tokenizer, chat template, weights."""
    _say("Preparing the tokenizer", 0, 4)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    _say("Converting the weights", 1, 4)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    _say("Writing safetensors", 3, 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _say("Writing safetensors", 4, 4)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
