"""What is in a model's files, read from their headers alone: no weights, no torch, a few milliseconds."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmsvc.errors import BadRequest
from llmsvc.models import adapters

_MOST_HEADER = 100_000_000
"""Bytes, as the safetensors format has it (https://huggingface.co/docs/safetensors)."""
INDEX = "model.safetensors.index.json"
_OTHER = ("adapter_", "consolidated")
"""What the names of other files begin with: adapters, and the same weights in their makers' own layout."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. ``stored``: its type, in the words of safetensors."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    stored: str = "BF16"

    @property
    def floating(self) -> bool:
        """Whether loading turns it into the type that the model computes in."""
        return self.stored in ("F64", "F32", "F16", "BF16")

    @property
    def count(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class Contents:
    """A model's configuration, in the words of transformers, and its tensors."""

    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    packed: bool = False
    """In a GGUF file, which is unpacked to safetensors once."""
    whole: dict[str, Any] = field(default_factory=dict)
    """config.json as it stands, where it describes more than the language model."""
    vocabulary: int = 0
    """How many ids the tokenizer's words need; 0 where that was not looked at."""
    base: str = ""
    """Of an adapter: the model that it is added to, whose contents these are not."""
    trouble: str = ""
    """Why the files cannot be loaded, as sentences; empty where nothing is amiss."""

    @property
    def outer(self) -> dict[str, Any]:
        """All of config.json."""
        return self.whole or self.config


def read(path: Path) -> Contents:
    """The contents of a folder with safetensors, or of a GGUF file. Raises BadRequest.

    Of an adapter's folder it is only said which model it belongs to.
    """
    try:
        if path.is_file():
            with path.open("rb") as file:
                return read_gguf(file)
        if adapters.is_adapter(path):
            return Contents({}, (), base=adapters.base_of(path))
        whole = json.loads((path / "config.json").read_text())
        return Contents(text_part(whole), _folder(path), whole=whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise BadRequest(f"{path.name} is damaged or incomplete ({error}). Download it again.") from None


_INNER = ("text_config", "llm_config", "language_config", "thinker_config")
"""What models that see or hear call the configuration of their language model."""


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language model, over what it says of all."""
    for name in _INNER:
        if isinstance(inner := config.get(name), dict):
            return text_part({**{key: value for key, value in config.items() if key != name}, **inner})
    return dict(config)


def vocabulary_of(folder: Path) -> int:
    """How many ids the words of a folder's tokenizer need; 0 without tokenizer.json.

    Tokens that were added are left out: some models never use theirs, and have no row for them (Gemma 3's for images).
    """
    try:
        words = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
        return 1 + max(words.values()) if isinstance(words, dict) else len(words)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def weight_files(folder: Path) -> list[Path]:
    """The files that loading reads: one, or those that the index names, or all where it is missing."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (index := folder / INDEX).is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(_OTHER))


def _folder(folder: Path) -> tuple[TensorInfo, ...]:
    return tuple(tensor for file in weight_files(folder) for tensor in _safetensors(file))


def _safetensors(path: Path) -> list[TensorInfo]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _MOST_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return [
        made(name, entry["dtype"], entry["shape"], entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def made(name: str, dtype: str, shape: Sequence[int], offsets: Sequence[int]) -> TensorInfo:
    """A tensor as a safetensors header describes it."""
    return TensorInfo(name, tuple(shape), offsets[1] - offsets[0], dtype)


_SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
"""By GGUF's number of the type; 8 is a string, 9 an array. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""


class Readable(Protocol):
    """What a header needs of a file."""

    def read(self, count: int, /) -> bytes: ...

    def seek(self, count: int, whence: int, /) -> Any:
        """Forward only: ``whence`` is 1."""


def read_gguf(file: Readable) -> Contents:
    """By its header. Raises ValueError and its like for what is none."""
    if file.read(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    _version, tensors, pairs = _take(file, "IQQ")
    metadata = {}
    for _ in range(pairs):
        key = _string(file)
        metadata[key] = _value(file, _take(file, "I")[0])
    found = []
    for _ in range(tensors):
        name, (dimensions,) = _string(file), _take(file, "I")
        shape = tuple(reversed(_take(file, f"{dimensions}Q")))
        _take(file, "IQ")  # how it is packed, and where: it is unpacked when it is converted
        found.append(TensorInfo(name, shape, 0))  # in 16 bits then
    return Contents(_translated(metadata), tuple(found), packed=True)


def _take(file: Readable, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _string(file: Readable) -> str:
    return file.read(_take(file, "Q")[0]).decode(errors="replace")


def _value(file: Readable, kind: int) -> Any:
    """One value; of an array, such as the vocabulary, its length."""
    if kind == 8:
        return _string(file)
    if kind != 9:
        return _take(file, _SCALARS[kind])[0]
    inner, length = _take(file, "IQ")
    if inner == 8:
        for _ in range(length):
            file.seek(_take(file, "Q")[0], 1)
    elif inner == 9:
        for _ in range(length):
            _value(file, inner)
    else:
        file.seek(length * struct.calcsize(f"<{_SCALARS[inner]}"), 1)
    return length


_GGUF_NAMES = {
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "embedding_length": "hidden_size",
    "context_length": "max_position_embeddings",
    "ssm.state_size": "mamba_d_state",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
}


def _translated(metadata: dict[str, Any]) -> dict[str, Any]:
    kind = str(metadata["general.architecture"])
    named = {ours: metadata.get(f"{kind}.{theirs}") for theirs, ours in _GGUF_NAMES.items()}
    return {"model_type": kind, **{name: value for name, value in named.items() if value is not None}}
