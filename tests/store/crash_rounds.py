"""Kills writers: ``python crash_rounds.py FOLDER ROUNDS``. One process that forks them, so that a round takes little.

Each writer works on a data directory of its own and tells through a pipe what it begins and what was acknowledged.
Prints one JSON line: rounds, acknowledged, lost, unreadable, returned (deleted documents that came back).
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmsvc.store.database import Database

Model = dict[str, dict[str, dict[str, Any]]]


def write(folder: Path, seed: int, pipe: int) -> None:
    rng, database = random.Random(seed), Database(folder)
    sessions: dict[str, list[str]] = {}
    while True:
        action = rng.choice(("create", "add", "add", "add", "add", "change", "remove"))
        if action == "create" or not sessions:
            step = ["create", f"{rng.getrandbits(128):032x}"]
        else:
            step = [action, rng.choice(list(sessions))]
        if step[0] in ("add", "change"):
            ids = sessions[step[1]]
            new = step[0] == "add" or not ids
            step[2:] = [f"{rng.getrandbits(64):x}" if new else rng.choice(ids), "x" * rng.randrange(3000)]
            step[0] = "add" if new else "change"
        os.write(pipe, json.dumps(step).encode() + b"\n")
        act(database, step)
        if step[0] == "create":
            sessions[step[1]] = []
        elif step[0] == "remove":
            del sessions[step[1]]
        elif step[0] == "add":
            sessions[step[1]].append(step[2])
        os.write(pipe, b"ok\n")


def act(database: Database, step: list[str]) -> None:
    match step:
        case ["create", session]:
            database.add_session({"id": session, "owner": "local", "undo_until": None, "updated_at": 0})
        case ["remove", session]:
            database.remove_session(session)
        case ["add", session, id_, text]:
            database.add_messages(session, [{"id": id_, "content": text}])
        case ["change", session, id_, text]:
            database.update_message(session, id_, {"content": text})


def applied(model: Model, step: list[str]) -> Model:
    after = {session: dict(messages) for session, messages in model.items()}
    match step:
        case ["create", session]:
            after[session] = {}
        case ["remove", session]:
            after.pop(session)
        case ["add" | "change", session, id_, text]:
            after[session][id_] = {"id": id_, "content": text}
    return after


def main(root: Path, rounds: int) -> None:
    total = {"rounds": rounds, "acknowledged": 0, "lost": 0, "unreadable": 0, "returned": 0}
    for number in range(rounds):
        folder, (reader, writer) = root / str(number), os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            try:
                write(folder, number, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            rng = random.Random(number)
            first = b"".join(told.readline() for _ in range(rng.randrange(1, 60)))  # no time: a busy disk is slow
            time.sleep(rng.uniform(0, 0.003))  # the moment of the crash is the point
            os.kill(child, signal.SIGKILL)
            lines = (first + told.read()).splitlines()
        os.waitpid(child, 0)
        model: Model = {}
        pending: list[str] | None = None
        for line in lines:
            if line == b"ok":
                model, pending = applied(model, pending or []), None
                total["acknowledged"] += 1
            else:
                pending = json.loads(line)
        allowed = [model, applied(model, pending)] if pending else [model]
        try:
            database = Database(folder)
            rows = database.sessions()
            found = {row["id"]: {m["id"]: m for m in database.messages(row["id"])} for row in rows}
            database.close()
        except Exception as error:
            print(f"round {number}: {error}", file=sys.stderr)
            total["unreadable"] += 1
            continue
        files = {path.name.split(".")[0] for path in folder.glob("sessions/*/*")} - set(found)
        total["returned"] += bool(files) or any(session not in allowed[0] | allowed[-1] for session in found)
        total["lost"] += found not in allowed
    print(json.dumps(total))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
