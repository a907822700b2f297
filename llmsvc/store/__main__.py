"""For operators: ``python -m llmsvc.store check|repair|export DIR``. Stop llmsvc first."""

import argparse
import json
import sys
import time
from pathlib import Path

from llmsvc.errors import StorageError
from llmsvc.store.database import index_path, lock, session_path
from llmsvc.store.disk import Disk
from llmsvc.store.storage import JournalStorage


class _LookOnly(Disk):
    """Reads; a torn end stays as it is."""

    def open(self, path: Path, *, empty: bool = False) -> int:
        raise OSError(30, "only looking")


def databases(data_dir: Path) -> list[Path]:
    """Every database of a data directory, also those that only have a journal yet."""
    found = {index_path(data_dir)}
    for folder in ("sessions", "files"):
        found.update(data_dir.glob(f"{folder}/*/*.json"))
        found.update(path.with_suffix("") for path in data_dir.glob(f"{folder}/*/*.json.journal"))
    return sorted(found)


def check(data_dir: Path) -> int:
    """Read everything, change nothing; 1 when a file is damaged."""
    bad = documents = 0
    for path in (paths := databases(data_dir)):
        try:
            tables = JournalStorage(path, _LookOnly()).read()
            documents += sum(len(table) for table in tables.values())
        except StorageError as error:
            bad += 1
            print(error)
    print(f"{len(paths)} files, {documents:,} documents, {bad} damaged.")
    return 1 if bad else 0


def repair(data_dir: Path) -> int:
    """Fold all journals; keep what can be read of damaged files, and the damaged files beside them."""
    mended = 0
    for path in (paths := databases(data_dir)):
        try:
            JournalStorage(path).close()
            continue
        except StorageError:
            pass
        kept = f".damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        for part in (path, path.with_name(path.name + ".journal")):
            if part.exists():
                part.with_name(part.name + kept).write_bytes(part.read_bytes())
        storage = JournalStorage(path, salvage=True)
        storage.rewrite()
        storage.close()
        mended += 1
        print(f"{path}: {'; '.join(storage.repairs) or 'made whole'}. The damaged file is kept as {path.name}{kept}.")
    print(f"{len(paths)} files, {mended} repaired.")
    return 0


def export(data_dir: Path, target: Path) -> int:
    """Write each session as JSON that the page can import; 1 when some cannot be read."""
    target.mkdir(parents=True, exist_ok=True)
    done = bad = 0
    for row in JournalStorage(index_path(data_dir), _LookOnly()).read().get("sessions", {}).values():
        try:
            tables = JournalStorage(session_path(data_dir, row["id"]), _LookOnly()).read()
        except StorageError as error:
            bad += 1
            print(error)
            continue
        session = {**row, "messages": list(tables.get("messages", {}).values())}
        (target / f"{row['id']}.json").write_text(json.dumps(session, ensure_ascii=True, indent=1))
        done += 1
    print(f"{done} sessions written to {target}, {bad} could not be read.")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llmsvc.store", description=__doc__)
    parser.add_argument("command", choices=("check", "repair", "export"))
    parser.add_argument("dir", type=Path, help="the data directory")
    parser.add_argument("--to", type=Path, help="where export writes (default: DIR/export)")
    given = parser.parse_args()
    try:
        if not given.dir.is_dir():
            raise StorageError(f"There is no data directory {given.dir}.")
        with lock(given.dir):
            if given.command == "export":
                return export(given.dir, given.to or given.dir / "export")
            return check(given.dir) if given.command == "check" else repair(given.dir)
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
