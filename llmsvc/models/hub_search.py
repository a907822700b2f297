"""What the Hugging Face hub has, and whether it would run here, by what a search tells of it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from llmsvc.errors import Unavailable
from llmsvc.models.can_it_run import Verdict, verdict
from llmsvc.models.headers import Contents
from llmsvc.models.hub import answers

MOST_FOUND = 30
_ITEM_BITS = {"F64": 64, "F32": 32, "I32": 32, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "I4": 4, "U4": 4, "F4": 4}


def search(query: str) -> list[dict[str, Any]]:
    """Models that write text which the hub finds, most often downloaded first: with safetensors or as GGUF files.

    Rows {id, type, bytes, parameters, downloads, gated} with those of a verdict; 0 where the hub does not say.
    Raises Unavailable.
    """
    if not answers():
        raise Unavailable(
            "The Hugging Face hub cannot be reached from here. Check the network, or load a model of this machine."
        )
    from huggingface_hub.errors import HTTPError

    try:
        with ThreadPoolExecutor(len(_SOUGHT)) as threads:
            models = [model for some in threads.map(partial(_list, query.strip()[:200]), _SOUGHT) for model in some]
    except (HTTPError, OSError, ValueError) as error:
        raise Unavailable(f"The hub did not answer ({error}). Try again, or type the id of a model.") from None
    by_id = {model.id: model for model in models if "/" in model.id}
    often = sorted(by_id.values(), key=lambda model: -(model.downloads or 0))
    return [_found(model) for model in often[:MOST_FOUND]]


_SOUGHT = (
    {"filter": "safetensors", "pipeline_tag": "text-generation"},
    {"filter": "safetensors", "pipeline_tag": "image-text-to-text"},
    {"filter": "gguf"},
)
"""What is looked for; adapters and quantised copies are among them."""


def _list(query: str, sought: dict[str, str]) -> list[Any]:
    from huggingface_hub import HfApi

    fields: Any = ["downloads", "gated", "safetensors", "gguf", "config"]
    return list(HfApi().list_models(search=query, sort="downloads", limit=MOST_FOUND, expand=fields, **sought))


def _found(model: Any) -> dict[str, Any]:
    counts = model.safetensors.parameters if model.safetensors else {}
    packed = (model.gguf or {}) if not counts else {}
    return {
        "id": model.id,
        "type": str((model.config or {}).get("model_type") or packed.get("architecture") or ""),
        "bytes": sum(count * _ITEM_BITS.get(kind, 16) // 8 for kind, count in counts.items()),
        "parameters": model.safetensors.total if model.safetensors else int(packed.get("total") or 0),
        "downloads": model.downloads or 0,
        "gated": bool(model.gated),
        **_described(model.config or {}, packed).row(),
    }


def _described(config: dict[str, Any], packed: dict[str, Any]) -> Verdict:
    """What can be said of a model by what a search tells of it."""
    if packed.get("architecture"):
        return verdict(Contents({"model_type": packed["architecture"]}, (), packed=True))
    return verdict(Contents(config, ())) if config.get("model_type") else Verdict(True)
