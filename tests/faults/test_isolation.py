"""Many users at once, each with code words of its own: nobody ever gets another's, and nothing is lost or reordered.

``--clients 32 --minutes 5`` is the long run. With ``-s`` it prints what was done.
"""

import concurrent.futures
import json
import random
import re
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import until
from conftest import App
from gradio_client import Client

CODE = re.compile(r"K\d{9}")


class User:
    """Does at random what people do, and knows what must be stored then."""

    def __init__(self, url: str, name: str, password: str, code: str) -> None:
        self.name, self.code, self.done = name, code, Counter[str]()
        self._url, self._dice = url, random.Random(name)
        # Two, since gradio_client can take one call's end for another's that begins: it cancels that then.
        self._client, self._sender = (Client(url, auth=(name, password), verbose=False) for _ in range(2))
        self.asked: dict[str, list[str]] = {}
        self._jobs: list[Any] = []

    def call(self, *args: Any, name: str) -> Any:
        return self.mine(self._client.predict(*args, api_name=f"/{name}"))

    def mine(self, payload: Any) -> Any:
        """The payload, in which no code but one's own may stand."""
        found = set(CODE.findall(json.dumps(payload)))
        assert found <= {self.code}, f"{self.name} has {self.code} and was sent {found}"
        return payload

    def run(self, seconds: float) -> "User":
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            action = self._dice.choices(
                (self.send, self.watch, self.stop, self.switch, self.edit, self.delete), (6, 4, 2, 3, 2, 1)
            )[0]
            if self.asked or action == self.send:
                action()
                self.done[action.__name__] += 1
        for session in self.asked:
            self.settle(session)
        for job in self._jobs:
            for frame in job.outputs():
                self.mine(frame)
        listed = self.call("", name="session_list")
        assert {row["id"] for row in listed} == set(self.asked)
        return self

    def some(self) -> str:
        return self._dice.choice(list(self.asked))

    def send(self) -> None:
        if len(self.asked) < 3:
            self.asked[self.call("", name="session_create")["id"]] = []
        session = self.some()
        if len(self.asked[session]) - len(self.shown(session)) > 3:
            return  # enough waits
        text = f"{secrets.token_hex(3)}: my code is {self.code}. Repeat my code."
        before = self.count(session)
        self._jobs.append(self._sender.submit(session, text, api_name="/chat"))
        until(lambda: self.count(session) == before + 1)
        self.asked[session].append(text)

    def watch(self) -> None:
        """Read the running answer's events, and now and then only some of them."""
        session, most = self.some(), self._dice.choice((3, 1000))
        with httpx.stream(
            "GET", f"{self._url}/v1/sessions/{session}/stream", cookies=self._client.cookies, timeout=120
        ) as response:
            for number, line in enumerate(response.iter_lines()):
                self.mine(line)
                if number > most:
                    break

    def stop(self) -> None:
        session = self.some()
        if self.session(session)["messages"][-1:] and self.session(session)["messages"][-1]["state"] == "running":
            try:
                self.call(session, name="stop")
            except Exception as error:
                if "Nothing is being answered" not in str(error):  # it may have ended meanwhile
                    raise

    def switch(self) -> None:
        session = self.some()
        rows = self.shown(session)
        assert rows == self.asked[session][: len(rows)]

    def edit(self) -> None:
        session = self.some()
        self.settle(session)
        messages = [m for m in self.session(session)["messages"] if m["role"] == "user"]
        if messages:
            place = self._dice.randrange(len(messages))
            text = f"{secrets.token_hex(3)}: once more, my code is {self.code}."
            self._jobs.append(self._sender.submit(session, messages[place]["id"], text, api_name="/edit"))
            until(lambda: self.shown(session)[-1:] == [text])
            self.asked[session] = [*self.asked[session][:place], text]

    def delete(self) -> None:
        session = self.some()
        self.settle(session)
        self.call(session, name="session_delete")
        if self._dice.random() < 0.5:
            self.call(session, name="session_restore")
        else:
            del self.asked[session]

    def session(self, session: str) -> dict[str, Any]:
        return dict(self.call(session, name="session_get"))

    def shown(self, session: str) -> list[str]:
        return [m["content"] for m in self.session(session)["messages"] if m["role"] == "user"]

    def count(self, session: str) -> int:
        found = self.session(session)
        return len(found["queued"]) + sum(m["role"] == "user" for m in found["messages"])

    def settle(self, session: str) -> None:
        """Until everything is answered; then it must all be there, in its order."""

        def settled() -> bool:
            found.update(self.session(session))
            assert not [m["error"] for m in found["messages"] if m["state"] == "failed"]
            return not found["queued"] and all(m["state"] in ("done", "stopped") for m in found["messages"])

        found: dict[str, Any] = {}
        until(settled, 900, 0.5)
        messages = found["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * len(self.asked[session])
        assert [m["content"] for m in messages[::2]] == self.asked[session]


def test_nobody_gets_what_is_anothers(own_data: Path, request: pytest.FixtureRequest) -> None:
    count, minutes = int(request.config.getoption("--clients")), float(request.config.getoption("--minutes"))
    names = {f"user{n}": f"K{random.Random(n).randrange(10**9):09d}" for n in range(count)}
    app = App(own_data, *(flag for name in names for flag in ("--auth", f"{name}:secret"))).wait()
    try:
        admin = Client(app.url, auth=(next(iter(names)), "secret"), verbose=False)  # the first login
        admin.predict({"max_tokens": 12}, api_name="/settings_set")
        users = [User(app.url, name, "secret", code) for name, code in names.items()]
        with concurrent.futures.ThreadPoolExecutor(count) as threads:
            done = sum((user.done for user in threads.map(lambda user: user.run(minutes * 60), users)), Counter[str]())
    finally:
        app.stop()
    index = json.loads((own_data / "index.json").read_text())
    owners = {row["id"]: row["owner"] for row in index["sessions"].values()}
    files = list((own_data / "sessions").rglob("*.json"))
    assert files
    for file in files:
        assert set(CODE.findall(file.read_text())) <= {names[owners[file.stem]]}
    print(f"\n{count} users, {minutes:g} minutes: {dict(done)}")
