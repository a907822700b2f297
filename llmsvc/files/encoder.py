"""What a text means as a vector: the encoder all-MiniLM-L6-v2 (Apache-2.0), computed by numpy.

Not by torch: on a CPU that belongs to the engine, and a second team of its threads makes every step slower; and the
child process that encodes files is there at once. The model is BERT of 6 layers: https://arxiv.org/abs/2002.10957,
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]

SIZE = 384
"""Numbers of a vector."""
LONGEST = 256
"""Tokens that are read of a text."""
_HEADS = 12


class Encoder:
    """Read from a folder with ``model.safetensors`` and ``tokenizer.json``. Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or ValueError for files that are not there, or not these."""
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        self._weights = _mapped(folder / "model.safetensors")
        self._layers = len({name.split(".")[2] for name in self._weights if name.startswith("encoder.layer.")})
        if self._weights["embeddings.LayerNorm.weight"].shape != (SIZE,):
            raise ValueError(f"the encoder in {folder} has other vectors")

    def encode(self, text: str) -> "Array":
        """Of length 1."""
        import numpy as np

        ids = self._tokenizer.encode(text).ids
        words, places, kinds = (self._weights[f"embeddings.{n}_embeddings.weight"] for n in _EMBEDDINGS)
        hidden = self._normed("embeddings.LayerNorm", words[ids] + places[: len(ids)] + kinds[0])
        for number in range(self._layers):
            hidden = self._layer(f"encoder.layer.{number}", hidden)
        mean = hidden.mean(axis=0)
        found: Array = mean / np.linalg.norm(mean)
        return found

    def _layer(self, name: str, x: "Array") -> "Array":
        import numpy as np

        q, k, v = (self._heads(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.float32((SIZE // _HEADS) ** 0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ v).transpose(1, 0, 2).reshape(x.shape)
        x = self._normed(
            f"{name}.attention.output.LayerNorm", x + self._linear(f"{name}.attention.output.dense", mixed)
        )
        inner = _gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._normed(f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", inner))

    def _heads(self, name: str, x: "Array") -> "Array":
        return self._linear(name, x).reshape(len(x), _HEADS, -1).transpose(1, 0, 2)

    def _linear(self, name: str, x: "Array") -> "Array":
        found: Array = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return found

    def _normed(self, name: str, x: "Array") -> "Array":
        import numpy as np

        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(1e-12))
        found: Array = x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return found


def _tokenizer(path: Path) -> Any:
    """In three steps: ``Tokenizer.from_file`` is one, of 40 ms and more, and all threads wait for it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    described = json.loads(path.read_bytes())
    model = described["model"]
    words = WordPiece(
        model["vocab"], unk_token=model["unk_token"], max_input_chars_per_word=model["max_input_chars_per_word"]
    )
    model["vocab"] = {token["content"]: token["id"] for token in described["added_tokens"]}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.model = words
    return tokenizer


def _mapped(path: Path) -> "dict[str, Array]":
    """The tensors of a safetensors file, as it lies on the disk: the library copies it, and all threads wait.

    The format: https://huggingface.co/docs/safetensors.
    """
    import numpy as np

    raw = np.asarray(np.memmap(path, np.uint8, "r"))
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    return {
        name: raw[start + row["data_offsets"][0] : start + row["data_offsets"][1]]
        .view(np.float32)
        .reshape(row["shape"])
        for name, row in header.items()
        if row.get("dtype") == "F32"
    }


_EMBEDDINGS = ("word", "position", "token_type")


def _gelu(x: "Array") -> "Array":
    """By tanh, which is within 0.001 of the exact one."""
    import numpy as np

    found: Array = np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978846) * (x + np.float32(0.044715) * x * x * x)))
    return found
