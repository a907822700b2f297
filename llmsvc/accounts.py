"""Who may ask: logins, API keys and guests.

The store's table ``credentials`` holds passwords as scrypt hashes, and SHA-256 of keys and of the tokens of logins,
which are random enough by themselves.
"""

import argparse
import hashlib
import hmac
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from llmsvc.errors import BadRequest, LlmsvcError, LoginMissing, NotFound, TooMany
from llmsvc.store.database import Database, Row
from llmsvc.store.rows import Rows

TABLE = "credentials"
LOCAL = "local"
LOGIN_SECONDS = 30 * 24 * 3600
TRIES, TRIES_SECONDS = 5, 60
"""Wrong passwords for one name, and how long it is closed after them."""
ALL_TRIES = 30
"""Wrong passwords for all names together in that time: behind a public link every client has the same address."""
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # https://cheatsheetseries.owasp.org, about 50 ms


@dataclass(frozen=True)
class Caller:
    """``admin``: may load models, change defaults and look at the metrics. ``proven``: by a key or a login."""

    owner: str
    admin: bool = False
    proven: bool = False

    @property
    def guest(self) -> bool:
        return self.owner.startswith("guest:")


class Keys:
    """API keys in the store. Safe from any thread."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def make(self, owner: str, name: str) -> tuple[Row, str]:
        """Its row, and the key itself, which is known this once. Raises BadRequest."""
        if not name.strip() or len(name) > 80:
            raise BadRequest("A key needs a name of 1 to 80 characters, to know it by.")
        if not owner or owner.startswith("guest:"):
            raise BadRequest("A key is made for a user. Give a name.")
        key = f"llmsvc-{secrets.token_urlsafe(32)}"
        row = {"id": _digest(key), "kind": "key", "owner": owner, "name": name.strip(), "created_at": time.time()}
        self._rows.add(row)
        return row, key

    def of(self, owner: str = "") -> list[Row]:
        """Those of one owner, or of all."""
        return self._rows.find(lambda row: row["kind"] == "key" and owner in ("", row["owner"]))

    def revoke(self, key_id: str, owner: str = "") -> Row:
        """Raises NotFound."""
        for row in self.of(owner):
            if row["id"][:16] == key_id:
                self._rows.remove(row["id"])
                return row
        raise NotFound("There is no such key. It may have been revoked already.")


class Accounts:
    """Answers from memory; changes go to the store. Safe from any thread."""

    def __init__(
        self, database: Database, logins: Sequence[tuple[str, str]], keys: Sequence[str], public: bool, guests: bool
    ) -> None:
        """``public``: others than this machine's users reach the port; a login is made when nothing is given then."""
        self._rows = database.index(TABLE)
        self._made = Keys(self._rows)
        self.guests = guests
        self.made_password = ""
        if public and not (logins or keys):
            self.made_password = secrets.token_urlsafe(12)
            logins = [("admin", self.made_password)]
        self.closed = public or bool(logins)
        """Whether the page needs a login."""
        self._logins = [name for name, _ in logins]
        self._admins = {LOCAL, *self._logins[:1]}
        self._given = {_digest(key): LOCAL for key in keys}
        self._failures: dict[str, list[float]] = {}
        self._lock = Lock()
        for name, password in logins:
            self._set_password(name, password)
        for row in self._rows.find(lambda row: row["kind"] == "login"):
            if row["owner"] not in (*self._logins, LOCAL) or row["expires_at"] < time.time():
                self._rows.remove(row["id"])
        gone = {row["owner"] for row in self._rows.find(lambda row: row["kind"] == "password")} - set(self._logins)
        # Those of a login that was taken away open nothing.
        self._keys = {row["id"]: row["owner"] for row in self._made.of() if row["owner"] not in gone}
        self._tokens = {
            row["id"]: (row["owner"], row["expires_at"]) for row in self._rows.find(lambda row: row["kind"] == "login")
        }

    @property
    def keys_set(self) -> bool:
        return bool(self._given or self._keys)

    def caller(self, key: str, token: str, guest: str = "") -> Caller | None:
        """Whose request it is, by what it brings; None when it must bring more. Raises LoginMissing for a wrong key."""
        if key and (self.closed or self.keys_set):
            digest = _digest(key)
            if owner := self._given.get(digest) or self._keys.get(digest):
                return Caller(owner, owner in self._admins, True)
            raise LoginMissing("This API key is not known. Use another one, or ask for a new one.")
        if token:
            owner, expires = self._tokens.get(_digest(token), ("", 0.0))
            if expires > time.time():
                return Caller(owner, owner in self._admins, True)
        if not self.closed:
            return Caller(LOCAL, True)
        return Caller(f"guest:{_digest(guest)[:32]}") if self.guests and guest else None

    def is_admin(self, owner: str) -> bool:
        """Whether that owner may change what is everybody's."""
        return owner in self._admins

    # Logins

    def log_in(self, name: str, password: str) -> str:
        """A token for a cookie. Takes 50 ms of a core. Raises LoginMissing, or TooMany after several wrong tries.

        With keys, a key is a password of its owner too: for a page to which nobody has a login.
        """
        name = name.strip()
        self._check_tries(name)
        if not self._right(name, password):
            self._failed(name)
            raise LoginMissing("The name or the password is wrong.")
        self._failures.pop(name, None)
        token, expires = secrets.token_urlsafe(32), time.time() + LOGIN_SECONDS
        row = {"id": _digest(token), "kind": "login", "owner": name, "expires_at": expires}
        self._rows.add(row)
        self._tokens[row["id"]] = (name, expires)
        return token

    def log_out(self, token: str) -> None:
        digest = _digest(token)
        self._tokens.pop(digest, None)
        self._rows.remove(digest)

    def _right(self, name: str, password: str) -> bool:
        row = self._rows.get(f"password:{name}") if name in self._logins else None
        salt = bytes.fromhex(row["salt"]) if row else b"nobody's"
        same = hmac.compare_digest(_scrypt(password, salt), row["hash"] if row else "")  # as long for an unknown name
        digest = _digest(password)
        return same or (name != "" and name in (self._given.get(digest), self._keys.get(digest)))

    def _set_password(self, name: str, password: str) -> None:
        """Another password than before ends the name's logins."""
        if (row := self._rows.get(f"password:{name}")) and hmac.compare_digest(
            _scrypt(password, bytes.fromhex(row["salt"])), row["hash"]
        ):
            return
        for old in self._rows.find(lambda row: row["kind"] == "login" and row["owner"] == name):
            self._rows.remove(old["id"])
        salt = secrets.token_bytes(16)
        made = {"id": f"password:{name}", "kind": "password", "owner": name}
        self._rows.put({**made, "salt": salt.hex(), "hash": _scrypt(password, salt)})

    def _check_tries(self, name: str) -> None:
        since = time.monotonic() - TRIES_SECONDS
        with self._lock:
            self._failures = {
                n: kept for n, tries in self._failures.items() if (kept := [t for t in tries if t > since])
            }
            of_all = sum(map(len, self._failures.values()))
            if len(self._failures.get(name, ())) >= TRIES or of_all >= ALL_TRIES:
                raise TooMany(f"Too many wrong tries. Try again in {TRIES_SECONDS} seconds.", TRIES_SECONDS)

    def _failed(self, name: str) -> None:
        with self._lock:
            self._failures.setdefault(name, []).append(time.monotonic())

    # Keys

    def make_key(self, owner: str, name: str) -> Row:
        """A new key of ``owner``: shown now, and never again. Raises BadRequest."""
        row, key = self._made.make(owner, name)
        self._keys[row["id"]] = owner
        return {**shown(row), "key": key}

    def keys(self, owner: str) -> list[Row]:
        """What is known of them: the keys themselves are not."""
        return [shown(row) for row in self._made.of(owner)]

    def revoke_key(self, owner: str, key_id: str) -> None:
        """Raises NotFound."""
        self._keys.pop(self._made.revoke(key_id, owner)["id"], None)


def shown(row: Row) -> Row:
    """A key's row without its hash."""
    return {"id": row["id"][:16], **{name: row[name] for name in ("owner", "name", "created_at")}}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _scrypt(password: str, salt: bytes) -> str:
    return hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m llmsvc.accounts make|list|revoke DIR``, with llmsvc stopped."""
    parser = argparse.ArgumentParser(prog="python -m llmsvc.accounts", description="API keys. Stop llmsvc first.")
    parser.add_argument("command", choices=("make", "list", "revoke"))
    parser.add_argument("dir", type=Path, help="the data directory")
    parser.add_argument("--for", dest="owner", default=LOCAL, help="whose key is made (local)")
    parser.add_argument("--name", default="", help="what the new key is known by")
    parser.add_argument("--id", default="", help="which key is revoked, as list shows it")
    given = parser.parse_args(arguments)
    try:
        database = Database(given.dir)
        try:
            keys = Keys(database.index(TABLE))
            if given.command == "make":
                print(keys.make(given.owner, given.name)[1])
            elif given.command == "revoke":
                print(f"{shown(keys.revoke(given.id))['id']} is revoked.")
            else:
                for row in map(shown, keys.of()):
                    print(f"{row['id']}  {time.strftime('%Y-%m-%d', time.localtime(row['created_at']))}  "
                          f"{row['owner']}  {row['name']}")  # fmt: skip
        finally:
            database.close()
    except LlmsvcError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
