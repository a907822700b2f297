"""Keys by command, with the service stopped."""

import subprocess
import sys
from pathlib import Path

from llmsvc.accounts import Accounts, Caller
from llmsvc.store.database import Database


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmsvc.accounts", *arguments], capture_output=True, text=True)


def caller(data: Path, key: str) -> Caller | None:
    database = Database(data)
    found = Accounts(database, [("ann", "x")], [], True, False).caller(key, "")
    database.close()
    return found


def test_keys_by_command(tmp_path) -> None:
    data = tmp_path / "data"
    made = command("make", str(data), "--name", "nightly", "--for", "bob")
    key = made.stdout.strip()
    assert (made.returncode, key.startswith("llmsvc-")) == (0, True)
    assert caller(data, key) == Caller("bob", False, True)
    listed = command("list", str(data)).stdout
    assert "bob  nightly" in listed
    assert key not in listed
    assert all(key.encode() not in path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert command("revoke", str(data), "--id", listed.split()[0]).returncode == 0
    assert command("list", str(data)).stdout == ""
    refused = command("revoke", str(data), "--id", "x")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert command("make", str(data)).returncode == 1
    database = Database(data)  # the service runs
    assert command("list", str(data)).returncode == 1
    database.close()
