"""Brings the data directory of an older version to this one's format, after a backup of it."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsvc.errors import StorageError
from llmsvc.store.storage import META, JournalDB, replace, snapshot

log = logging.getLogger(__name__)

VERSION = 2
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


def _from_1(data_dir: Path) -> None:
    """Messages in a row become a tree with one branch, sessions get settings of their own."""
    for path in {p.with_name(p.name.removesuffix(".journal")) for p in data_dir.glob("sessions/*/*.json*")}:
        parents = [""]

        def link(row: Any, parents: list[str] = parents) -> None:
            depth = len(parents)
            row.update(parent=parents[-1], depth=depth, chosen=depth, options={})
            parents.append(row["id"])

        try:
            database = JournalDB(path)
            database.table("messages").update(link)
            database.close()
        except StorageError as error:  # damaged: it says so when it is opened; the other chats work
            log.warning("%s", error)
    index = JournalDB(data_dir / "index.json")
    index.table("sessions").update({"settings": {}, "auto_title": False})
    index.table("meta").update({"version": 2})
    index.close()


MIGRATIONS: list[Callable[[Path], None]] = [_from_0, _from_1]
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
            for name in ("index.json", "index.json.journal", "sessions", "files"):
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
    path = data_dir / "index.json"
    try:
        raw = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}). Check its rights.") from error
    if raw and META.encode() not in raw[-200:]:
        return 0
    if row := re.search(rb'"meta": \{"1": \{"id": "version", "version": ([0-9]+)\}', raw):
        return int(row[1])
    if not raw and not path.with_name("index.json.journal").exists():
        return VERSION
    index = JournalDB(path)  # written by a process that was killed before its first snapshot
    found = index.table("meta").all()
    index.close()
    return int(found[0]["version"]) if found else 1
