"""How a load tells of itself, and how it is ended."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage in words, and how much of how much (bytes, or steps) is done. Raising cancels."""


class Cancelled(Exception):
    """Raised by a ``Progress`` of a load that is no longer wanted."""
