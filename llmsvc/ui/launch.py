"""Opens the port: the page, the routes beside it, and the service's life around them."""

import asyncio
import faulthandler
import gc
import logging
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.routes import templates
from gradio.tunneling import CURRENT_TUNNELS
from jinja2 import FunctionLoader
from starlette.middleware import Middleware

from llmsvc.errors import Conflict
from llmsvc.http import patience
from llmsvc.http.errors import unreadable
from llmsvc.http.guard import Guard
from llmsvc.http.metrics import Counts
from llmsvc.http.routes import make_routes
from llmsvc.service import Service
from llmsvc.settings import Settings
from llmsvc.ui import tools
from llmsvc.ui.lean import hot_first
from llmsvc.ui.page import Page
from llmsvc.ui.quick import Quick
from llmsvc.ui.shut import shut

log = logging.getLogger(__name__)

UNCLAIMED_SECONDS = 600
"""How long an upload stays that no event takes in."""
AGAIN_SECONDS = 1.0
"""From then on a second signal is somebody's who does not want to wait; one before comes with the first."""
STOPPING_SECONDS = 25.0
"""Who stops a service may kill it after half a minute."""
ASSETS = Path(__file__).resolve().parents[2] / "assets"


def check_port(settings: Settings) -> None:
    """Raises Conflict when another program listens there, with what to do."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Conflict(
                f"Port {settings.port} on {settings.host} cannot be used ({error.strerror}). "
                "Stop the program that has it, or choose another with --port."
            ) from error


def _upload_folder(data_dir: Path) -> Path:
    """Where Gradio keeps uploads until they are taken in: nobody else on this machine may look, and nothing stays."""
    folder = data_dir / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def _forget(uploads: Path) -> None:
    """Delete what no event took in."""
    for path in uploads.rglob("*"):
        with suppress(OSError):  # taken meanwhile, or a folder that is not empty
            if time.time() - path.stat().st_ctime > UNCLAIMED_SECONDS:
                path.rmdir() if path.is_dir() else path.unlink()


def _stopper(stops: SimpleQueue[float]) -> Callable[[int, Any], None]:
    """A handler of signals: the first one is put into the queue."""
    first = inf

    def stop(number: int, _: Any) -> None:
        nonlocal first
        if time.monotonic() - first > AGAIN_SECONDS:
            os._exit(128 + number)
        first = min(first, time.monotonic())
        stops.put(first)

    return stop


def _nothing_within(seconds: int, queue: SimpleQueue[float]) -> bool:
    for _ in range(2 * seconds):  # a signal that comes just before a wait does not end it: its handler runs after it
        with suppress(Empty):
            queue.get(timeout=0.5)
            return False
    return True


def _head_first() -> None:
    """Our head in the page as it is served: as Gradio takes one, it comes when Gradio's scripts run, behind the first
    paint, and a reload in mid-answer would show nothing for so long."""
    environment, mark = templates.env, "<script>window.gradio_config"
    as_it_was, head = environment.loader, (ASSETS / "head.html").read_text()

    def page(name: str) -> str:
        source: str = as_it_was.get_source(environment, name)[0]
        return source.replace(mark, f"{{% raw %}}{head}{{% endraw %}}{mark}", 1)

    environment.loader = FunctionLoader(page)


def launch(service: Service) -> None:
    """Serve until SIGINT or SIGTERM; who sends one again ends the process at once. Models begin to load once the page
    is reachable."""
    stops: SimpleQueue[float] = SimpleQueue()  # an Event that a handler sets can wait for the thread it interrupts
    for sign in (signal.SIGINT, signal.SIGTERM):  # before the port is open, so that no stop is lost
        signal.signal(sign, _stopper(stops))
    settings = service.settings
    uploads = _upload_folder(settings.data_dir)
    shut()
    patience.install()
    if settings.mcp:
        tools.install()
    demo = Page(service).build()
    loops: list[asyncio.AbstractEventLoop] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        yield

    counts: Counts = Counter()
    most_uploaded = 4 * settings.max_upload_bytes  # several files come together
    level = logging.INFO if settings.log_json else logging.DEBUG  # each open page asks once a second
    guard = Middleware(
        Guard, service.accounts, settings.port, settings.host, most_uploaded, uploads, counts, level, settings.mcp
    )
    demo.queue(default_concurrency_limit=None, max_size=256, api_open=False)
    _head_first()  # before the port is open: no page is served without
    demo.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        max_threads=256,
        max_file_size=settings.max_upload,
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=settings.mcp,
        blocked_paths=[str(settings.data_dir / name) for name in ("index.json", "sessions", "files", "models")],
        favicon_path=str(ASSETS / "favicon.svg"),
        theme=gr.themes.Default(
            primary_hue="indigo", neutral_hue="slate", font=["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
        ),
        css_paths=[ASSETS / "style.css"],
        app_kwargs={
            "routes": make_routes(service, counts).routes,
            "middleware": [guard, Middleware(Quick, demo)],
            "lifespan": lifespan,
            "exception_handlers": {RequestValidationError: unreadable},
        },
    )
    hot_first(demo.app)
    print(f"llmsvc is open on http://{settings.host}:{settings.port}", flush=True)
    if service.accounts.made_password:
        made = service.accounts.made_password
        print(f"Others can reach this page, so it needs a login: name admin, password {made}", flush=True)
    if demo.share_url:
        print(f"Public link: {demo.share_url}", flush=True)
    gc.freeze()  # what stands now stays: a collection that looks at it stops everything for 0.1 s
    service.preload()
    while _nothing_within(60, stops):
        service.tidy()
        _forget(uploads)
    print("\nStopping; running answers are kept. Who does not want to wait presses Ctrl-C again.", flush=True)
    # First the answers: a server that closes waits for its streams, and those wait for them.
    try:
        asyncio.run_coroutine_threadsafe(service.stop(), loops[0]).result(STOPPING_SECONDS)
    except TimeoutError:
        log.warning("Not everything ended in time. What was said so far is stored; this is what still runs:")
        faulthandler.dump_traceback()
    else:
        demo.close(verbose=False)
    for tunnel in CURRENT_TUNNELS:  # Gradio ends them when the interpreter does, which it need not
        tunnel.kill()
