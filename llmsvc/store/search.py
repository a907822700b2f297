"""Full-text search over session files without opening them as databases, so that thousands take a moment."""

import json
import os
import re
from contextlib import suppress


class Needle:
    """Words to look for in either case (that of ``str.lower``)."""

    def __init__(self, text: str) -> None:
        self._text = text.strip().lower()
        # Files hold ASCII JSON, in which a run of plain letters stands as it is typed: the rest is left to in_text.
        self._raw = max(re.findall(r"[a-z0-9 ]+", self._text), key=len, default="").encode()

    def __bool__(self) -> bool:
        return bool(self._text)

    def in_text(self, text: str) -> bool:
        return self._text in text.lower()

    def in_file(self, path: str) -> bool:
        """Whether a message of a closed session file contains the words; false for a file that cannot be read."""
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                data = os.read(handle, os.fstat(handle).st_size)
            finally:
                os.close(handle)
        except OSError:
            return False
        if self._raw not in data.lower():
            return False
        with suppress(ValueError, KeyError, AttributeError, TypeError):
            return any(self.in_text(message["content"]) for message in json.loads(data)["messages"].values())
        return False
