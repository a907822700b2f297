"""Brings the data directory of an older version to this one's format, after a backup of it."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmsvc.errors import StorageError
from llmsvc.store.storage import META, replace, snapshot

log = logging.getLogger(__name__)

VERSION = 1
"""Of the rows in a data directory; the index holds it in its table ``meta``."""


def _from_0(data_dir: Path) -> None:
    """Plain TinyDB files get a checksum, settings an ``id``. The index comes last: it tells the version."""
    for path in [*data_dir.glob("sessions/*/*.json"), data_dir / "index.json"]:
        raw = path.read_bytes()
        if META.encode() in raw[-200:]:  # done before a crash
            continue
        tables = json.loads(raw or b"{}")
        for row in tables.get("settings", {}).values():
            row["id"] = row.pop("key", "") or row["id"]
        replace(path, snapshot(tables, 0))


MIGRATIONS: list[Callable[[Path], None]] = [_from_0]
"""``MIGRATIONS[n]`` brings version n to n + 1; it may be run again on what a crash left half done."""


def run(data_dir: Path) -> None:
    """Migrate if need be. Raises StorageError for a newer version, or when a step fails; the backup then stands."""
    found = _version(data_dir)
    if found > VERSION:
        raise StorageError(f"{data_dir} was written by a newer llmsvc (format {found}). Update this one to use it.")
    if found == VERSION:
        return
    backup = data_dir / "backups" / f"version-{found}"
    try:
        if not backup.exists():
            part = backup.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name in ("index.json", "sessions", "files"):
                with suppress(FileNotFoundError):
                    (shutil.copytree if (data_dir / name).is_dir() else shutil.copy2)(data_dir / name, part / name)
            part.rename(backup)
        for step in MIGRATIONS[found:]:
            step(data_dir)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{data_dir} could not be brought to this version: {error}. A copy is in {backup}."
        ) from error
    log.warning("%s was brought from format %d to %d; the old files are in %s", data_dir, found, VERSION, backup)


def _version(data_dir: Path) -> int:
    try:
        raw = (data_dir / "index.json").read_bytes()
    except FileNotFoundError:
        return VERSION
    except OSError as error:
        raise StorageError(f"{data_dir / 'index.json'} cannot be read ({error.strerror}). Check its rights.") from error
    if META.encode() not in raw[-200:]:
        return 0
    row = re.search(rb'"meta": \{"1": \{"id": "version", "version": ([0-9]+)\}', raw)
    return int(row[1]) if row else VERSION
