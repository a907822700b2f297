"""The file endpoints of the contract, through the real client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples
from clients import until
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError


@pytest.fixture(scope="module")
def client(app) -> Client:
    return Client(app.url, verbose=False)


@pytest.fixture
def session(client) -> Iterator[str]:
    id_ = client.predict(title="Files", api_name="/session_create")["id"]
    yield id_
    client.predict(id_, api_name="/session_delete")


def upload(client: Client, session: str, path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    return client.predict(handle_file(str(path)), session, api_name="/file_upload")


def read(client: Client, session: str, id_: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        row = client.predict(session, id_, api_name="/file_get")
        return None if row["state"] in ("queued", "parsing") else row

    return until(over)


def test_upload_list_get_remove(client, session, app, tmp_path) -> None:
    row = upload(client, session, tmp_path / "report.pdf", samples.pdf(["The harbour freezes.", "Second page."]))
    assert {"id", "name", "bytes", "state", "progress", "pages", "error"} <= row.keys()
    assert (row["name"], row["state"]) == ("report.pdf", "queued")
    whole = read(client, session, row["id"])
    assert (whole["state"], whole["pages"], whole["progress"]) == ("ready", 2, 1)
    assert whole["text"] == "The harbour freezes.\n\nSecond page."
    assert [found["id"] for found in client.predict(session, api_name="/file_list")] == [row["id"]]
    assert client.predict(session, api_name="/session_get")["files"][0]["state"] == "ready"
    assert client.predict(session, row["id"], api_name="/file_remove") == {"id": row["id"]}
    assert client.predict(session, api_name="/file_list") == []
    assert list((app.data_dir / "files").rglob(f"{row['id']}*")) == []
    with pytest.raises(AppError, match="no such file"):
        client.predict(session, row["id"], api_name="/file_get")


def test_an_upload_does_not_stay_where_others_can_fetch_it(app, client, session, tmp_path) -> None:
    secret = b"a secret that nobody else may fetch"
    row = upload(client, session, tmp_path / "secret.txt", secret)
    read(client, session, row["id"])
    kept = [path for path in (app.data_dir / "uploads").rglob("*") if path.is_file() and path.read_bytes() == secret]
    assert kept == []


def test_errors_can_be_acted_on(client, session, tmp_path) -> None:
    with pytest.raises(AppError, match="no such chat"):
        upload(client, "0" * 32, tmp_path / "a.txt", b"x")
    row = upload(client, session, tmp_path / "cut.pdf", samples.pdf(["word"])[:300])
    row = read(client, session, row["id"])
    assert row["state"] == "failed"
    assert "save it anew" in row["error"]


def test_a_restored_chat_has_its_files(client, session, tmp_path) -> None:
    row = upload(client, session, tmp_path / "long.pdf", samples.pdf(samples.sentences(30, n) for n in range(60)))
    client.predict(session, api_name="/session_delete")
    with pytest.raises(AppError, match="deleted"):
        client.predict(session, api_name="/file_list")
    client.predict(session, api_name="/session_restore")
    assert read(client, session, row["id"])["state"] == "ready"
