"""Memory that the system gives page by page as it is written to, and takes back slot by slot."""

import mmap
from math import prod

import torch


def by_the_page(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the host that take no memory until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, max(prod(shape), 1) * dtype.itemsize, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # or a short text would take two megabytes in each head
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    held = torch.frombuffer(pages, dtype=dtype)[: prod(shape)].view(shape)
    held.pages = pages  # type: ignore[attr-defined]
    return held


def give_back(held: torch.Tensor, slot: int) -> None:
    """Let ``held[slot]`` be zeros again that take no memory; nothing happens to what was not made above."""
    pages = getattr(held, "pages", None)
    if pages is None:
        return
    size = held[slot].numel() * held.element_size()
    start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        pages.madvise(mmap.MADV_DONTNEED, start, end - start)
