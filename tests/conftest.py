"""One real app for the whole run: the real model, a fresh data directory, a port of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
hypothesis.settings.register_profile("untimed", deadline=None)  # no test measures time
hypothesis.settings.load_profile("untimed")
# Nor is a busy machine a failure: two files run at once, each with a service that computes on all cores.
expect.set_options(timeout=60_000)
for part in ("connect", "read", "write", "pool"):  # gradio_client's requests have these as well
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, 120)
os.environ.setdefault("LLMSVC_NO_COMPILE", "1")  # it takes minutes of a core; tests/engine/test_compiled.py does it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crashes", type=int, default=20, help="crashes in each crash test of the store")
    parser.addoption("--faults", type=int, default=12, help="random faults while answers are watched")
    parser.addoption("--compiled", type=Path, help="a folder of compiled steps, to find faults with a fast model")
    parser.addoption("--clients", type=int, default=8, help="clients that use the service at random, each its own chat")
    parser.addoption("--requests", type=int, default=60, help="random requests for models that do not all fit")
    parser.addoption("--needles", type=int, default=60, help="facts that are hidden in chats and files")
    parser.addoption("--minutes", type=float, default=0.2, help="for how long they do")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--compiled"):
        os.environ.pop("LLMSVC_NO_COMPILE", None)


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    attacks = sum(item.get_closest_marker("attack") is not None for item in items)
    return [f"{attacks} attacks on a service that others can reach"] if attacks else []


@pytest.fixture
def crashes(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--crashes"))


@pytest.fixture
def needles(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--needles"))


def with_models_of(data_dir: Path, folder: Path) -> Path:
    """A data directory in ``folder`` that has the other one's models and kernels."""
    own = folder / "data"
    own.mkdir()
    (own / "models").symlink_to(data_dir / "models")
    copy_kernels(data_dir, own)
    return own


def copy_kernels(data_dir: Path, own: Path) -> None:
    """What has been built in one data directory is taken in the other."""
    (own / "compiled").mkdir()
    for pattern in ("*-kernels.so", "*-way.json"):
        for file in (data_dir / "compiled").glob(pattern):
            shutil.copy2(file, own / "compiled")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class App:
    """``python app.py`` as a user starts it, or another program in its place."""

    def __init__(self, data_dir: Path, *flags: str, port: int = 0, program: str = "app.py") -> None:
        self.data_dir, self.port = data_dir, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.parent / f"{data_dir.name}.log"
        given = ("--port", str(self.port), "--data-dir", str(data_dir), *flags)
        command = [sys.executable, "-X", "faulthandler", program, *given]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log.open("a"), stderr=subprocess.STDOUT)

    def wait(self, path: str = "/ready", seconds: float = 300) -> "App":
        """Until ``path`` answers 200."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if urllib.request.urlopen(self.url + path, timeout=5).status == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"{path} did not answer: {self.log.read_text()}")

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(sign)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # what each thread was doing then stands in the log
            try:
                self.process.wait(30)
            finally:
                self.process.kill()
            raise AssertionError(f"did not end: {self.log.read_text()}") from None


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, brought to the disk through its real sources, once per run."""
    from llmsvc.models.catalogue import SMOLLM2, Catalogue
    from llmsvc.models.download import fetch

    models = tmp_path_factory.mktemp("default") / "models"
    catalogue = Catalogue(models)
    stages: list[str] = []
    folder = fetch(catalogue, SMOLLM2, lambda stage, done, total: stages.append(stage))
    assert stages or catalogue.local(SMOLLM2)
    return folder


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of files, brought to the disk through its real sources, once per run."""
    from llmsvc.models.catalogue import MINILM, Catalogue
    from llmsvc.models.download import fetch

    return fetch(Catalogue(tmp_path_factory.mktemp("encoder") / "models"), MINILM, lambda *_: None)


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, encoder_dir: Path) -> Path:
    """A data directory that has the models already."""
    from llmsvc.models.catalogue import MINILM, SMOLLM2, Catalogue

    data = tmp_path_factory.mktemp("data") / "data"
    for entry, folder in ((SMOLLM2, model_dir), (MINILM, encoder_dir)):
        shutil.copytree(folder, Catalogue(data / "models").folder(entry.id))
    return data


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server of somebody else's, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"fetched")

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def app(data_dir: Path) -> Iterator[App]:
    running = App(data_dir).wait()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[App]:
    """The service with a model that thinks: see tests/thinker.py."""
    own = tmp_path_factory.mktemp("thinker") / "data"
    running = App(own, "--tokenizer", str(model_dir), program="tests/thinker.py").wait()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def make_data(
    data_dir: Path, model_dir: Path, encoder_dir: Path, request: pytest.FixtureRequest
) -> Callable[[Path], Path]:
    """Makes a data directory in a folder; the weights are links to the shared ones, and kernels are copied."""
    from llmsvc.models.catalogue import MINILM, SMOLLM2, Catalogue

    def make(folder: Path) -> Path:
        data = folder / "data"
        for entry, own in ((SMOLLM2, model_dir), (MINILM, encoder_dir)):
            shutil.copytree(own, Catalogue(data / "models").folder(entry.id), copy_function=os.link)
        if compiled := request.config.getoption("--compiled"):
            shutil.copytree(compiled, data / "compiled")
        else:
            copy_kernels(data_dir, data)
        return data

    return make


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model takes hangs on whether there are kernels: none are left of other tests of this process."""
    from llmsvc.engine import kernels

    monkeypatch.setattr(kernels, "_library", None)


@pytest.fixture
def own_data(tmp_path: Path, make_data: Callable[[Path], Path]) -> Path:
    """A data directory of the test's own."""
    return make_data(tmp_path)


@pytest.fixture(scope="module")  # no longer: an event loop runs in this thread as long as it lives
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()
