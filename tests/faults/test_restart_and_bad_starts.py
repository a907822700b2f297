"""Stop, kill, and starts that cannot work."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, App
from gradio_client import Client

from llmsvc.models.catalogue import SMOLLM2, Catalogue

STORY = "Write a very long story about a lighthouse, with many chapters."


def start_badly(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "app.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)


def one_sentence(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_chats_survive_a_restart_and_a_kill(own_data: Path) -> None:
    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    session = client.predict(title="Kept", api_name="/session_create")["id"]
    client.predict(session, "What is the capital of France?", temperature=0, api_name="/chat")
    listed = client.predict(api_name="/session_list")
    whole = client.predict(session, api_name="/session_get")
    app.stop()

    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    assert client.predict(api_name="/session_list") == listed
    assert client.predict(session, api_name="/session_get") == whole
    job = client.submit(session, STORY, temperature=0, max_tokens=400, api_name="/chat")
    for text, _ in job:
        if len(text) > 300:  # some seconds in: at least one checkpoint was written
            break
    app.process.kill()
    app.process.wait()

    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    messages = client.predict(session, api_name="/session_get")["messages"]
    continued, _ = client.predict(session, api_name="/continue")
    app.stop()
    assert continued.startswith(messages[3]["content"])
    assert len(continued) > len(messages[3]["content"])
    assert [m["state"] for m in messages] == ["done", "done", "done", "interrupted"]
    assert messages[2]["content"] == STORY
    assert messages[3]["content"]
    assert text.startswith(messages[3]["content"]) or messages[3]["content"].startswith(text)


def test_a_message_that_was_taken_in_survives_a_kill_at_once(own_data: Path) -> None:
    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    session = client.predict(api_name="/session_create")["id"]
    for _ in client.submit(session, STORY, temperature=0, max_tokens=400, api_name="/chat"):
        break  # sooner than anything is written but the message
    app.process.kill()
    app.process.wait()

    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    (listed,) = client.predict(api_name="/session_list")
    asked, answer = client.predict(session, api_name="/session_get")["messages"]
    continued, status = client.predict(session, api_name="/continue")
    app.stop()
    assert (listed["turns"], listed["title"]) == (1, "Write a very long story about a lighthouse, wit…")
    assert (asked["content"], answer["state"]) == (STORY, "interrupted")
    assert continued
    assert status["state"] == "done"


def test_a_stop_in_mid_answer_keeps_the_text(own_data: Path) -> None:
    app = App(own_data).wait()
    client = Client(app.url, verbose=False)
    session = client.predict(api_name="/session_create")["id"]
    job = client.submit(session, STORY, temperature=0, max_tokens=4000, api_name="/chat")
    for text, _ in job:
        if len(text) > 60:
            break
    app.stop(signal.SIGTERM)  # as systemd and docker stop it
    app = App(own_data).wait()
    last = Client(app.url, verbose=False).predict(session, api_name="/session_get")["messages"][-1]
    app.stop()
    assert last["state"] == "interrupted"
    assert last["content"].startswith(text)


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = one_sentence(start_badly("--port", port, "--data-dir", str(tmp_path / "d")), 1)
    assert port in line
    assert "--port" in line


def test_data_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = one_sentence(start_badly("--data-dir", str(tmp_path / "file" / "data"), "--port", "7999"), 1)
    assert str(tmp_path / "file" / "data") in line
    assert "--data-dir" in line


def test_data_directory_in_use(app: App) -> None:
    line = one_sentence(start_badly("--data-dir", str(app.data_dir), "--port", "7998"), 1)
    assert f"process {app.process.pid}" in line


def test_unknown_model_and_bad_flag(tmp_path: Path) -> None:
    assert "no model id" in one_sentence(start_badly("--model", "what is this", "--data-dir", str(tmp_path)), 1)
    assert "There is no /no/where" in one_sentence(start_badly("--model", "/no/where", "--data-dir", str(tmp_path)), 1)
    assert "--device" in one_sentence(start_badly("--device", "abacus"), 2)


def test_broken_model_files_leave_the_page_and_the_chat(own_data: Path) -> None:
    weights = Catalogue(own_data / "models").folder(SMOLLM2.id) / "model.safetensors"
    weights.unlink()  # a link to the shared file: never write through it
    weights.write_bytes(b"garbage" * 1000)
    app = App(own_data).wait("/health")
    client = Client(app.url, verbose=False)
    session = client.predict(api_name="/session_create")["id"]
    with pytest.raises(Exception, match="damaged or incomplete") as error:
        client.predict(session, "Hello?", api_name="/chat")
    assert "Traceback" not in str(error.value)
    messages = client.predict(session, api_name="/session_get")["messages"]
    assert messages[0]["content"] == "Hello?"
    assert messages[1]["state"] == "failed"
    app.stop()
