"""Moves what tensors hold from a device to host memory and back, and leaves every tensor what it is."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def held_tensors(model: Any) -> Iterator[torch.Tensor]:
    """A model's parameters and buffers, with the scales that bitsandbytes keeps beside its weights."""
    yield from model.parameters()
    yield from model.buffers()
    for parameter in model.parameters():
        state, scales = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
        beside = [scales] if state is None else [state.absmax, state.code]
        yield from (tensor for tensor in beside if tensor is not None)


class HostCopy:
    """What ``tensors`` hold, in host memory until ``back``; meanwhile they hold nothing, and nobody may read them.

    Their storages are emptied and filled again, as FullyShardedDataParallel does (torch.distributed.fsdp, ``resize_``),
    so tied weights, views and bitsandbytes' states stay together. The host memory is one piece, page-locked where that
    can be had (cudaHostRegister): torch's own page-locked memory is rounded up to powers of two.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        """Raises MemoryError or RuntimeError, and leaves the tensors as they were, when the host has no room."""
        storages = {s.data_ptr(): s for tensor in tensors if (s := tensor.untyped_storage()).nbytes()}
        self._places: list[tuple[Any, int, int]] = []
        at = 0
        for storage in storages.values():
            self._places.append((storage, at, storage.nbytes()))
            at += -(-storage.nbytes() // 64) * 64
        self._bytes = torch.empty(at, dtype=torch.uint8)
        self._locked = torch.cuda.is_available() and not _driver("cudaHostRegister", self._bytes.data_ptr(), at, 0)
        for storage, start, size in self._places:
            self._bytes[start : start + size].copy_(_as_bytes(storage), non_blocking=True)
        self._finish()
        for storage, _, _ in self._places:
            storage.resize_(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def back(self) -> None:
        """Put everything back to where it was. Raises torch.OutOfMemoryError, and the tensors cannot be used then."""
        for storage, start, size in self._places:
            storage.resize_(size)
            _as_bytes(storage).copy_(self._bytes[start : start + size], non_blocking=True)
        self._finish()
        self.drop()

    def drop(self) -> None:
        """Give the host memory back."""
        if self._locked:
            _driver("cudaHostUnregister", self._bytes.data_ptr())
        self._bytes, self._places, self._locked = torch.empty(0, dtype=torch.uint8), [], False

    def _finish(self) -> None:
        """Wait for the copies: on this stream. The whole device is not to be waited for while another model records."""
        for device in {storage.device for storage, _, _ in self._places if storage.device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()


def _as_bytes(storage: Any) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _driver(name: str, *arguments: int) -> int:
    """0 when it worked."""
    return int(getattr(torch.cuda.cudart(), name)(*arguments))  # type: ignore[no-untyped-call]
