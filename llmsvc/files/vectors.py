"""Texts as vectors, so that what says the same in other words is found: sums of word vectors, no model runs.

The vectors are those of WordLlama (MIT), 256 numbers for each of 32,000 pieces of words, read from its package.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]
    Pieces = np.ndarray[Any, np.dtype[np.int32]]

_AT_ONCE = 1000


class Vectors:
    """Of the texts of one library. A rare piece of a word counts more, and what all texts share is taken out."""

    def __init__(self, pieces: "list[Pieces]") -> None:
        """``pieces``: of each text."""
        import numpy as np

        texts_with = np.zeros(len(_table()[1]), np.float32)
        for ids in pieces:
            texts_with[np.unique(ids)] += 1
        self._weights = np.log(1 + (len(pieces) - texts_with + 0.5) / (texts_with + 0.5))
        rows = unit(np.stack([self._sum(ids) for ids in pieces]))
        self._shared = rows.mean(axis=0)
        self._rows = unit(rows - self._shared)

    def likeness(self, text: str) -> "Array":
        """Cosine with each text."""
        (ids,) = pieces_of([text])
        found: Array = self._rows @ unit(unit(self._sum(ids)) - self._shared)
        return found

    def _sum(self, ids: Any) -> "Array":
        found: Array = self._weights[ids] @ _table()[1][ids]
        return found


def pieces_of(texts: list[str]) -> "list[Pieces]":
    """Ids of the pieces of words in each text."""
    import numpy as np

    tokenizer, found = _table()[0], []
    for start in range(0, len(texts), _AT_ONCE):
        encoded = tokenizer.encode_batch_fast(texts[start : start + _AT_ONCE], add_special_tokens=False)
        found += [np.array(one.ids, dtype=np.int32) for one in encoded]
    return found


def unit(rows: "Array") -> "Array":
    """Each of length 1."""
    import numpy as np

    found: Array = rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-9)
    return found


@cache
def _table() -> "tuple[Any, Array]":
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    spec = find_spec("wordllama")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    return tokenizer, table.astype(np.float32)
