"""The tensors of a folder by the names that a model has for them: files are mapped, and nothing is read until it is
taken. Packed weights are made whole when they are."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open

from llmsvc.models import quantised
from llmsvc.models.headers import TensorInfo, weight_files
from llmsvc.models.unpack import unpack


class Lazy:
    """A tensor that is made when it is taken; looks as safetensors' slices do to transformers."""

    def __init__(self, make: Callable[[], torch.Tensor], shape: tuple[int, ...], stored: str = "BF16") -> None:
        self.make, self._shape, self._stored = make, shape, stored

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def get_dtype(self) -> str:
        return self._stored

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self.make()[place]


class Checkpoint:
    """The weights of a folder, open while it is entered. ``weights``: what a load takes, by name."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """``config``: config.json."""
        self._folder, self._config = folder, config
        self._files = ExitStack()
        self._slices: dict[str, Any] = {}
        self._owners: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}

    def __enter__(self) -> "Checkpoint":
        for path in weight_files(self._folder):
            file = self._files.enter_context(safe_open(str(path), framework="pt"))
            for name in file.keys():  # noqa: SIM118 - it is no dict
                self._owners[name] = file
                self._slices[name] = file.get_slice(name)
        infos = [
            TensorInfo(name, tuple(piece.get_shape()), 0, piece.get_dtype()) for name, piece in self._slices.items()
        ]
        plain, packed = quantised.split(infos, self._config)
        self.weights = {info.name: self._slices[info.name] for info in plain}
        stored = quantised.sixteen_bits(plain)
        for one in packed:
            self.weights[one.name] = Lazy(partial(self._unpack, one), one.shape, stored)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.weights, self._slices, self._owners = {}, {}, {}
        self._files.close()

    def tensor(self, name: str) -> torch.Tensor | None:
        """One tensor by its name in the files; None where they have none of this name."""
        return self.weights[name][...] if name in self.weights else None

    def _unpack(self, packed: quantised.Packed) -> torch.Tensor:
        pieces = {part: self._owners[info.name].get_tensor(info.name) for part, info in packed.pieces.items()}
        return unpack(packed, pieces, self._config)
