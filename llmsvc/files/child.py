"""The process that parses one file, and dies with it: started by ``ingest`` as a script, isolated, with limits.

Its standard input says what to read and how much may be used. It writes JSON lines: ``{"page": n, "text": …,
"chunks": …}`` for each page as it is read, ``{"report": name, "value": …}`` for facts, and at last ``{"end": state,
"error": …}``. When the limits strike there is no last line: what was written so far stands.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def main(order: dict[str, Any]) -> None:
    limits = order["limits"]
    os.nice(19)  # whoever chats meanwhile goes first
    for what, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu_most"]))
    sys.path.insert(0, order["root"])
    sys.setrecursionlimit(3000)
    from llmsvc.files.parsers import Given, PasswordMissing, Refused, ScannedOnly

    given = Given(Path(order["path"]), order["name"], order["password"], order["encoding"], limits["characters"])
    try:
        cut = _read(given, limits)
        most = f"Only the first {given.characters:,} characters were read. Split the file to have all of it."
        _say(end="partial" if cut else "ready", error=most if cut else "")
    except PasswordMissing as error:
        _say(end="failed", error=str(error), locked=True)
    except ScannedOnly as error:
        _say(end="needs OCR", error=str(error))
    except Refused as error:
        _say(end="failed", error=str(error))
    except (MemoryError, RecursionError):
        _say(end="failed", error="This file needs more memory than parsing may take. Split it, or save it anew.")
    except Exception as error:
        _say(end="failed", error=f"This file cannot be read ({str(error) or type(error).__name__}). Save it anew.")


def _read(given: Any, limits: dict[str, Any]) -> bool:
    """Write out every page; true when there was more than may be read. Raises Refused."""
    from llmsvc.files.chunks import Cutter
    from llmsvc.files.kinds import kind_of

    kind, note = kind_of(given.path, given.name)
    _report("kind", kind)
    if note:
        _report("note", note)

    cut = False

    def report(name: str, value: Any) -> None:
        nonlocal cut
        if name == "cut":
            cut = True
            return
        if name == "pages":
            seconds = min(limits["cpu_most"], int(limits["cpu"] + limits["cpu_per_page"] * value))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, limits["cpu_most"]))
        _report(name, value)

    left, cutter = given.characters, Cutter(kind, given.name)
    for number, text in enumerate(_pages(kind)(given, report), 1):
        text = _clean(text)[: max(0, left + 1)]
        _say(page=number, text=text[:left], chunks=cutter.cut(text[:left]))
        left -= len(text)
        if left < 0:
            return True
    if left == given.characters:
        from llmsvc.files.parsers import Refused

        raise Refused("There is no text in this file.")
    return cut


def _pages(kind: str) -> Any:
    """The parser of a kind. Each is imported alone: that is most of a small file's time."""
    if kind == "pdf":
        from llmsvc.files.parsers.pdf import pages
    elif kind == "docx":
        from llmsvc.files.parsers.docx import pages
    elif kind == "html":
        from llmsvc.files.parsers.html import pages
    elif kind == "csv":
        from llmsvc.files.parsers.data import csv_pages as pages
    elif kind == "json":
        from llmsvc.files.parsers.data import json_pages as pages
    else:
        from llmsvc.files.parsers.text import pages
    return pages


def _clean(text: str) -> str:
    """What every later step can store and encode: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip("\n")


def _report(name: str, value: Any) -> None:
    _say(report=name, value=value)


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.stdin.readline()))
