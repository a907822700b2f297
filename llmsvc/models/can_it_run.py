"""Whether a model will run here and how, by what its files say of themselves: before a byte of its weights is read."""

import re
from dataclasses import dataclass
from typing import Any

from llmsvc.models import parts, quantised, tables, verify
from llmsvc.models.forecast import has_layers
from llmsvc.models.headers import Contents, TensorInfo

_SAFETENSORS = "Load the original model with safetensors instead"
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|token_embd|tok_embeddings)\.weight$")
_BITS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "mlx": "MLX", "mxfp4": "MXFP4", "modelopt": "ModelOpt"}


@dataclass(frozen=True)
class Verdict:
    """What is said of a model before it is loaded."""

    runs: bool
    reason: str = ""
    """Why it does not run and what to take instead, as sentences; empty when it runs."""
    kind: str = "text"
    """``text``; ``vision`` for models that also take images or sounds; ``other`` for those that write no text."""
    checkpoint: str = "none"
    """How its files are quantised: ``none``, ``gguf``, or a kind of ``quantised.checkpoint_kind``."""
    parts: str = ""
    """``text only`` when other parts of it are left out."""
    served: str = ""
    """In a few words how it would run; empty where there is nothing to say."""

    def row(self) -> dict[str, Any]:
        """The fields that ``/model_forecast``, ``/model_catalog`` and ``/model_search`` share."""
        return {
            "runs": self.runs,
            "reason": self.reason,
            "kind": self.kind,
            "checkpoint": self.checkpoint,
            "served": self.served if self.runs else "",
        }


ELSEWHERE = Verdict(True)
"""Of a model on another server."""


def verdict(contents: Contents, device: str = "cpu", quantization: str = "none") -> Verdict:
    """Whether a model runs on ``device`` ("cpu", "cuda:0"). Without torch, in milliseconds.

    What ``contents`` leaves out, such as tensors in a row of a search, is not asked for.
    """
    if contents.packed:
        return _of_gguf(str(contents.config.get("model_type")))
    config = contents.outer
    kind = _kind(config)
    checkpoint, treatment = quantised.checkpoint_kind(config), quantised.treatment(config, device)
    reason = contents.trouble or refuse_type(config) or ("" if treatment.runs else treatment.reason)
    reason = reason or _refuse_again(config, quantization) or _refuse_tensors(contents, device, quantization)
    left_out = "text only" if kind == "vision" else ""
    how = filter(None, [_held(checkpoint, config, treatment.dequantised), left_out])
    return Verdict(not reason, reason, kind, checkpoint, left_out, "; ".join(how))


def refuse_type(config: dict[str, Any]) -> str:
    """Why models of this config.json cannot chat here, as sentences; empty when they can."""
    kind = str(config.get("model_type") or "")
    if not kind:
        return (
            "Its config.json names no model_type, so it is not a model that transformers reads. Choose another model."
        )
    if kind not in tables.model_types() and "auto_map" in config:
        return (
            f'Models of the type "{kind}" bring their own Python code, which is never run, and this version of '
            "transformers has none for them. Choose another model, or a GGUF of it that says another architecture."
        )
    return verify.refuse_kind(config)


def _kind(config: dict[str, Any]) -> str:
    if parts.composite(config):
        return "vision"
    return "text" if str(config.get("model_type")) in tables.classes_for("CAUSAL_LM") else "other"


def _held(checkpoint: str, config: dict[str, Any], dequantised: bool) -> str:
    """Like "4-bit GPTQ, dequantised"."""
    if checkpoint == "none":
        return ""
    name, _, bits = checkpoint.partition("-") if checkpoint.startswith("bitsandbytes") else (checkpoint, "", "")
    own = quantised.settings(config).get("bits")
    bits = bits.removesuffix("bit") or (str(own) if isinstance(own, int) else "")
    named = _BITS.get(name, name)
    return (f"{bits}-bit {named}" if bits else named) + (", dequantised" if dequantised else "")


def _refuse_again(config: dict[str, Any], quantization: str) -> str:
    """What is quantised in a way that it keeps is not quantised in another."""
    own = quantised.kept(config)
    if not own or quantization in ("none", own):
        return ""
    return (
        f'It is already quantised to {own} by bitsandbytes, and stays so. Load it with quantization "none", or the '
        f"original model in {quantization}."
    )


def _refuse_tensors(contents: Contents, device: str, quantization: str) -> str:
    tensors = list(parts.effective(contents).tensors)
    reason = _refuse_vocabulary(contents, tensors) or quantised.refuse_width(tensors, quantization, device)
    if reason or quantization == "none" or not tensors or has_layers(contents):
        return reason
    return f'It has no layers that can be held in {quantization}. Load it with quantization "none" instead.'


def _refuse_vocabulary(contents: Contents, tensors: list[TensorInfo]) -> str:
    """A tokenizer of another model would name rows of the embeddings that are not there."""
    rows = max((tensor.shape[0] for tensor in tensors if _EMBEDDINGS.search(tensor.name)), default=0)
    if not rows or contents.vocabulary <= rows:
        return ""
    return (
        f"Its tokenizer knows {contents.vocabulary:,} tokens, its weights {rows:,}: one of them is another model's. "
        "Download its tokenizer again."
    )


def _of_gguf(architecture: str) -> Verdict:
    reason = "" if reads_gguf(architecture) else _refuse_gguf(architecture)
    return Verdict(not reason, reason, "text", "gguf", "", "GGUF, unpacked once")


def _refuse_gguf(architecture: str) -> str:
    if architecture in _ENCODERS:
        return f'It is a GGUF file of an encoder ("{architecture}"), which writes no text. Choose a model that does.'
    return (
        f'transformers cannot read GGUF files of the architecture "{architecture}". {_SAFETENSORS}, quantised by '
        "bitsandbytes, GPTQ or AWQ if it must be small."
    )


_ENCODERS = ("bert", "nomic-bert", "jina-bert-v2", "modern-bert", "t5", "t5encoder", "clip")


def reads_gguf(architecture: str) -> bool:
    """Whether transformers makes a model that writes text of such a file."""
    older = tables.keys("GGUF_CONFIG_MAPPING", "integrations/ggml.py")
    newer = tables.keys("GGUF_CONFIG_ARCHS", "integrations/gguf/gguf_config_mapping.py")
    plain = architecture.replace("-", "_")
    spelled = {architecture, plain, re.sub(r"(?<=\d)moe$", "_moe", plain)}
    return bool(spelled & (older | newer) - {"general", "tokenizer", *_ENCODERS})
