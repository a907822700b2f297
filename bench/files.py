"""What reading files costs everybody else: five PDFs of 300 pages at once.

The delay of the event loop, how soon the first page is there, and how long a removal takes, in this process; then, in a
running app, the gaps between the frames of an answer without and with the files; and the files that are too slow for a
test. Prints a table and writes ``bench/results/files.json``. Give a data directory that has the model.
"""

import asyncio
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 (a running app has it: its import is no part of what is measured)
from gradio_client import Client, handle_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "files"), str(ROOT / "tests")]  # run with "python -m bench.files"

import corpus  # noqa: E402
import samples  # noqa: E402
from conftest import App  # noqa: E402

from bench.report import write_results  # noqa: E402
from llmsvc.chat.sessions import Sessions  # noqa: E402
from llmsvc.files.files import Files  # noqa: E402
from llmsvc.files.limits import Limits  # noqa: E402
from llmsvc.files.meaning import Meaning  # noqa: E402
from llmsvc.models.catalogue import MINILM, Catalogue  # noqa: E402
from llmsvc.models.download import fetch  # noqa: E402
from llmsvc.store.database import Database  # noqa: E402

PAGES, COUNT = 300, 5


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def alone(folder: Path, pdf: bytes, encoder: Path) -> dict[str, float]:
    database = Database(folder / "alone")
    files = Files(database, Limits(), Meaning(lambda _: encoder))
    session = Sessions(database, "a/b", files).create("me")["id"]

    def add(number: int) -> dict[str, Any]:
        upload = folder / f"cache{number}" / "a.pdf"
        upload.parent.mkdir()
        upload.write_bytes(pdf)
        return files.add("me", session, f"{number}.pdf", upload)

    async def until(wanted: Any) -> float:
        start = time.perf_counter()
        while not await asyncio.to_thread(wanted):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return time.perf_counter() - start

    lags: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - start - 0.005)

    gc.freeze()  # as the app does when its page is open
    watching = asyncio.create_task(watch())
    first = await asyncio.to_thread(add, 0)
    first_page = await until(lambda: files.pages(session, first["id"]))
    start = time.perf_counter()
    await asyncio.to_thread(files.remove, "me", session, first["id"])
    removed = time.perf_counter() - start
    start = time.perf_counter()
    for number in range(1, COUNT + 1):
        await asyncio.to_thread(add, number)
    await until(lambda: all(row["state"] == "ready" for row in files.rows(session)))
    whole = time.perf_counter() - start
    watching.cancel()
    files.close()
    database.close()
    found = {"loop_lag_p99_ms": percentile(lags, 0.99) * 1e3, "loop_lag_max_ms": max(lags) * 1e3}
    return {**found, "first_page_s": first_page, "remove_ms": removed * 1e3, "five_files_s": whole}


def slow(folder: Path) -> dict[str, Any]:
    """State, seconds and the largest memory of a parser so far, in MB, of what is large."""
    large = {
        "200 MB.txt": lambda: b"The harbour freezes in winter, they say.\n" * 4_900_000,
        "a million rows.csv": lambda: b"city,height\n" + b"Davos,1560\n" * 1_000_000,
        "10,000 pages.pdf": lambda: corpus.plain_pdf(count=10_000),
        "3 million glyphs.pdf": corpus.glyph_pdf,
        "5 MB minified.js": lambda: corpus.ONE_LINE.encode() * 10,
    }
    database, found = Database(folder / "slow"), {}
    files = Files(database, Limits(upload=300_000_000))
    session = Sessions(database, "a/b", files).create("me")["id"]
    for name, make in large.items():
        upload = folder / "slow-cache" / "upload"
        upload.parent.mkdir()
        upload.write_bytes(make())
        start = time.perf_counter()
        row = files.add("me", session, name, upload)
        while (row := files.row("me", session, row["id"]))["state"] in ("queued", "parsing"):
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000
        found[name] = {"state": row["state"], "pages": row["pages"], "seconds": round(seconds, 1), "memory_mb": memory}
        found[name]["error"] = row["error"]
    files.close()
    database.close()
    return found


def gaps(url: str, client: Client, tokens: int = 200) -> list[float]:
    """Seconds between the frames of an answer."""
    session = client.predict(api_name="/session_create")["id"]
    options = {"temperature": 0, "max_tokens": tokens}
    job = client.submit(session, "Write a long story about a lighthouse.", **options, api_name="/chat")
    times: list[float] = []
    while not times:
        try:
            with urllib.request.urlopen(f"{url}/v1/sessions/{session}/stream", timeout=120) as stream:
                times = [time.perf_counter() for line in stream if _has_text(line)]
        except OSError:
            time.sleep(0.01)
    job.result()
    return [b - a for a, b in pairwise(times)]


def _has_text(line: bytes) -> bool:
    return line.startswith(b"data:") and json.loads(line[5:])["length"] > 0


def together(data: Path, pdf: Path) -> dict[str, float]:
    app = App(data).wait()
    try:
        client = Client(app.url, verbose=False)
        quiet = gaps(app.url, client) + gaps(app.url, client)
        session = client.predict(api_name="/session_create")["id"]
        rows = [client.predict(handle_file(str(pdf)), session, api_name="/file_upload") for _ in range(COUNT)]
        busy = gaps(app.url, client) + gaps(app.url, client)
        still = sum(row["state"] in ("queued", "parsing") for row in client.predict(session, api_name="/file_list"))
        for row in rows:
            client.predict(session, row["id"], api_name="/file_remove")
    finally:
        app.stop()
    found = {"gap_p50_quiet_ms": statistics.median(quiet) * 1e3, "gap_p99_quiet_ms": percentile(quiet, 0.99) * 1e3}
    found |= {"gap_p50_busy_ms": statistics.median(busy) * 1e3, "gap_p99_busy_ms": percentile(busy, 0.99) * 1e3}
    return {**found, "files_still_parsed_at_the_end": still}


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "data")
    encoder = fetch(Catalogue(data / "models"), MINILM, lambda *_: None)
    pdf = samples.pdf(samples.sentences(30, n) for n in range(PAGES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = asyncio.run(alone(folder, pdf, encoder))
        (folder / "long.pdf").write_bytes(pdf)
        results |= together(data, folder / "long.pdf")
        large = slow(folder)
    for name, row in large.items():
        print(f"{name:32} {row}")
    for key, value in results.items():
        print(f"{key:32} {value:10.2f}")
    write_results("files", {**results, "large": large})


if __name__ == "__main__":
    main()
