"""How much is taken: of a file, of a chat, of the disk, and of the machine while a file is parsed."""

from dataclasses import dataclass

MB = 1_000_000
GUESTS_TOGETHER = 10


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    upload: int = 50 * MB
    files: int = 50
    """In one chat."""
    quota: int = 50_000 * MB
    """All uploads of this service together."""
    owner_quota: int = 10_000 * MB
    guest_quota: int = 200 * MB
    """Of each guest; all guests together have ``GUESTS_TOGETHER`` times as much."""
    free_disk: int = 500 * MB
    """Left for everything else."""
    characters: int = 5_000_000
    """Of one file; what comes behind is not read, which is said."""
    memory: int = 1_500 * MB
    cpu: int = 20
    """Until it is known how many pages there are; then ``cpu + cpu_per_page * pages``, at most ``cpu_most``."""
    cpu_per_page: float = 0.2
    cpu_most: int = 300
    wall: int = 900
    """Long, because a parser gives way to answers: what bounds it is its CPU time."""
    at_once: int = 2


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit, name in ((1000 * MB, "GB"), (MB, "MB"), (1000, "KB")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count:.0f} bytes"
