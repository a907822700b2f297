"""The Hugging Face hub: what a model there is like, and bringing one here."""

import hashlib
import json
import re
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, NotFound, Unavailable
from llmsvc.models import adapters
from llmsvc.models.can_it_run import verdict
from llmsvc.models.catalogue import HUB_FILES, CatalogueEntry, hub_cache_folder, hub_root
from llmsvc.models.headers import Contents, TensorInfo, made, read_gguf, text_part, vocabulary_of
from llmsvc.models.memory import size
from llmsvc.models.progress import Progress

_USUAL = ("Q4_K_M", "Q5_K_M", "Q8_0", "Q6_K", "Q4_K_S", "Q4_0", "Q4_1", "BF16", "F16")
"""Of several GGUF files, the one that is taken if none is named."""

_PROBE_SECONDS = 2.0
_AT_ONCE, _TRIES, _BLOCK = 4, 5, 1 << 20


def answers() -> bool:
    """A brief probe, because huggingface_hub itself retries for 23 s without a network."""
    from urllib.parse import urlsplit

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    url = urlsplit(ENDPOINT)
    if HF_HUB_OFFLINE or not url.hostname:
        return False
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def bring(entry: CatalogueEntry, progress: Progress) -> Path:
    """Download a folder or a GGUF file into the Hugging Face cache, and go on with what was interrupted."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with _hub_errors(entry):
        progress(f"Looking at {entry.id}", 0, 0)
        info = HfApi().model_info(entry.repository, files_metadata=True)
        wanted = _weights(entry, info)
        _refuse(_with_vocabulary(entry, info, _contents(entry, info, wanted)))
        _bring_weights(entry, info.sha, wanted, progress)
        if wanted[0].rfilename.endswith(".gguf"):
            return Path(hf_hub_download(entry.repository, wanted[0].rfilename))
        snapshot_download(entry.id, **HUB_FILES)
    folder = hub_cache_folder(entry.id)
    if folder is None:
        raise _no_weights(entry)
    return folder


def _weights(entry: CatalogueEntry, info: Any) -> list[Any]:
    """The files that have a model's weights: those of safetensors, or one of GGUF. Raises BadRequest."""
    from huggingface_hub.utils import filter_repo_objects

    siblings = list(info.siblings or ())
    mine = filter_repo_objects(siblings, **HUB_FILES, key=lambda sibling: sibling.rfilename)
    tensors = [sibling for sibling in mine if sibling.rfilename.endswith(".safetensors")]
    if tensors and not entry.variant:
        return tensors
    packed = {kind: sibling for sibling in siblings if (kind := _gguf_kind(sibling.rfilename))}
    if not packed:
        raise _no_weights(entry)
    wanted = entry.variant.upper() or next((kind for kind in _USUAL if kind in packed), min(packed))
    if wanted not in packed:
        raise BadRequest(
            f"{entry.repository} has no GGUF file {entry.variant}. It has {', '.join(sorted(packed))}: load "
            f"{entry.repository}:{min(packed)}, for example."
        )
    return [packed[wanted]]


def _gguf_kind(name: str) -> str:
    """How a GGUF file is packed, by its name (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); nothing for
    other files, parts of one, and what belongs to pictures."""
    found = re.fullmatch(r"(?:.*[-._/])?(I?Q\d\w*|TQ\d\w*|BF16|F16|F32|MXFP4\w*)\.gguf", name, re.IGNORECASE)
    return found[1].upper() if found and "mmproj" not in name.lower() else ""


def _bring_weights(entry: CatalogueEntry, revision: str | None, wanted: list[Any], progress: Progress) -> None:
    """Put a model's large files where the library looks for them: its cache's ``blobs``, each by its ETag.

    The library itself begins a file anew that was interrupted. The cache's layout:
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    from huggingface_hub import hf_hub_url

    blobs = hub_root(entry.repository) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    files = [
        _File(
            hf_hub_url(entry.repository, sibling.rfilename, revision=revision),
            blobs / (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id),
            sibling.size or 0,
        )
        for sibling in wanted
    ]
    download = _Download(f"Downloading {entry.id}", sum(file.size for file in files), progress)
    missing = sum(file.size - file.there for file in files)
    if missing > (free := shutil.disk_usage(blobs).free):
        raise Unavailable(
            f"{entry.id} needs {size(missing)} of disk, and there are {size(free)}. Delete another model's files."
        )
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(download.file, files))


@dataclass(frozen=True)
class _File:
    url: str
    blob: Path
    size: int

    @property
    def part(self) -> Path:
        return self.blob.with_name(self.blob.name + ".llmsvc")

    @property
    def there(self) -> int:
        """Bytes of it that are on the disk."""
        for path in (self.blob, self.part):
            if path.is_file():
                return min(path.stat().st_size, self.size)
        return 0


class _Download:
    """Several files at once, each on a thread of its own; what ``progress`` raises ends all of them."""

    def __init__(self, stage: str, total: int, progress: Progress) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._done, self._lock = 0, threading.Lock()

    def file(self, file: _File) -> None:
        """Raises OSError, the library's HTTPError, and Unavailable for a file that is not what it should be."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        resumed = file.there
        self._add(resumed)
        if file.blob.is_file():
            return
        tries = _TRIES
        while tries:
            before = file.there
            try:
                self._read(file)
                break
            except HfHubHTTPError:  # the server has said why
                raise
            except HTTPError:
                tries = _TRIES if file.there > before else tries - 1
                if not tries:
                    raise
                time.sleep(1)
        sound = file.there == file.size
        if resumed and len(file.blob.name) == 64:  # a SHA-256
            # A machine that lost its power may have kept the length of a file, and not what was in it.
            with file.part.open("rb") as written:
                sound = sound and hashlib.file_digest(written, "sha256").hexdigest() == file.blob.name
        if not sound:
            file.part.unlink()
            raise Unavailable(f"{file.url} did not come as it should. Load it again.")
        file.part.rename(file.blob)

    def _read(self, file: _File) -> None:
        """What is missing of a file."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if (start := file.there) >= file.size > 0:
            return
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        with get_session().stream("GET", file.url, headers=headers, timeout=30) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:
                self._add(-start)
                start = 0
            with file.part.open("r+b" if start else "wb") as part:
                part.seek(start)
                for block in response.iter_bytes(_BLOCK):
                    self._add(len(block))  # first: one that was cancelled writes nothing where another goes on
                    part.write(block)

    def _add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._stage, self._done, self._total)


def contents(entry: CatalogueEntry) -> Contents:
    """What a model on the hub is like, by its configuration and headers: some kilobytes. Raises as ``fetch``."""
    if not answers():
        raise Unavailable(f"{entry.id} is not on this machine, and the hub cannot be reached. Load a local model.")
    from huggingface_hub import HfApi

    with _hub_errors(entry):
        info = HfApi().model_info(entry.repository, files_metadata=True)
        return _contents(entry, info, _weights(entry, info))


def _contents(entry: CatalogueEntry, info: Any, wanted: list[Any]) -> Contents:
    """``wanted``: the files with its weights."""
    from huggingface_hub import hf_hub_download, hf_hub_url

    name = wanted[0].rfilename
    if name.endswith(".gguf"):
        return _header(hf_hub_url(entry.repository, name, revision=info.sha))
    names = [sibling.rfilename for sibling in info.siblings]
    if "config.json" not in names and adapters.CONFIG in names:
        return Contents({}, (), base=_base(entry, Path(hf_hub_download(entry.id, adapters.CONFIG))))
    if "config.json" not in names:
        raise BadRequest(
            f"{entry.id} has no config.json, so it is not a model that transformers reads. Choose another."
        )
    try:
        config = json.loads(Path(hf_hub_download(entry.id, "config.json")).read_text())
        language = text_part(config)
    except (ValueError, AttributeError):
        raise BadRequest(f"The config.json of {entry.id} is not a model's. Choose another model.") from None
    return Contents(language, _tensors(entry, wanted), whole=config)


def _with_vocabulary(entry: CatalogueEntry, info: Any, contents: Contents) -> Contents:
    """The same with what the tokenizer says, which is downloaded for it: some megabytes."""
    from huggingface_hub import hf_hub_download

    if contents.packed or all(sibling.rfilename != "tokenizer.json" for sibling in info.siblings):
        return contents
    return replace(contents, vocabulary=vocabulary_of(Path(hf_hub_download(entry.id, "tokenizer.json")).parent))


def _base(entry: CatalogueEntry, file: Path) -> str:
    """The model that an adapter on the hub is added to. Raises BadRequest."""
    try:
        settings = json.loads(file.read_text())
        kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    except (ValueError, AttributeError):
        kind = base = None
    if kind != "LORA" or not base or not isinstance(base, str):
        raise BadRequest(
            f"{entry.id} is an adapter that cannot be added to a model here: only LoRA adapters that name their base "
            "model can. Look for a merged copy of it."
        )
    return base


def _tensors(entry: CatalogueEntry, wanted: list[Any]) -> tuple[TensorInfo, ...]:
    from huggingface_hub import HfApi

    read = partial(HfApi().parse_safetensors_file_metadata, entry.id)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        files = list(threads.map(read, [sibling.rfilename for sibling in wanted]))
    rows = ((name, info) for file in files for name, info in file.tensors.items())
    return tuple(made(name, info.dtype, info.shape, info.data_offsets) for name, info in rows)


def _refuse(contents: Contents) -> None:
    """Raises BadRequest for what would not run, before anything large of it is downloaded.

    An adapter is judged by its base model, when that is brought.
    """
    said = verdict(contents)
    if not said.runs and not contents.base:
        raise BadRequest(said.reason)


def _header(url: str) -> Contents:
    """Of a GGUF file, of which no more is read than that. Raises OSError, the library's HTTPError, BadRequest."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=30) as response:
        hf_raise_for_status(response)
        try:
            return read_gguf(_Streamed(response.iter_bytes(1 << 16)))
        except (ValueError, KeyError, TypeError, struct.error, OverflowError) as error:
            raise BadRequest(f"{url.rsplit('/', 1)[-1]} is damaged ({error}). Choose another model.") from None


class _Streamed:
    """A file as it comes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._block, self._at = blocks, b"", 0

    def read(self, count: int) -> bytes:
        parts = []
        while count:
            if self._at == len(self._block):
                self._block, self._at = next(self._blocks, b""), 0
            part = self._block[self._at : self._at + count]
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            count -= len(part)
        return b"".join(parts)

    def seek(self, count: int, _: int) -> None:
        while count:
            if not (read := len(self.read(min(count, 1 << 16)))):
                break
            count -= read


@contextmanager
def _hub_errors(entry: CatalogueEntry) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
        SafetensorsParsingError,
    )

    try:
        yield
    except GatedRepoError:
        raise Unavailable(
            f"{entry.id} is gated. Accept its licence on https://huggingface.co/{entry.repository}, "
            "then set HF_TOKEN to a token of your account (https://huggingface.co/settings/tokens) and load it again."
        ) from None
    except RepositoryNotFoundError:
        raise NotFound(
            f"The hub has no model {entry.id}. Check the spelling, or set HF_TOKEN if it is private."
        ) from None
    except SafetensorsParsingError as error:
        raise BadRequest(f"The weights of {entry.id} are damaged ({error}). Choose another model.") from None
    except (HTTPError, OSError) as error:
        raise Unavailable(f"The download of {entry.id} failed: {error}. Load it again to resume.") from None


def _no_weights(entry: CatalogueEntry) -> BadRequest:
    return BadRequest(
        f"{entry.id} has no safetensors weights and no GGUF file. Pickled weights can run code while they are read, so "
        "only those two are loaded. Look for a converted copy of it on the hub."
    )
