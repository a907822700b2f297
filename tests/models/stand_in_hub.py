"""Speaks to huggingface_hub as the hub does, over folders of this machine, and can stop in the middle of a file."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llmsvc.models.headers import read

BLOCK = 1 << 18
LARGE = (".safetensors", ".gguf")
"""What the hub keeps in LFS."""


class StandInHub:
    """``models``: folders by id. Those in ``gated`` are listed, and give nothing."""

    def __init__(self, models: dict[str, Path], gated: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.models, self.gated = models, gated
        self.asked: list[tuple[str, int]] = []
        """Files that were sent, and from which byte on."""
        self.searched: list[dict[str, list[str]]] = []
        self.goes_on = threading.Event()
        """While it is not set, no large file is sent further than ``stops_at``."""
        self.goes_on.set()
        self.stops_at = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path == "/api/models":
            return self._json(request, self._search(parse_qs(url.query)))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/[^/]+/?(.*))?", url.path)
        if not found or found[1] not in self.models:
            return self._refuse(request, 401, "RepoNotFound")
        id_, kind, name = found.groups()
        files = sorted(path for path in self.models[id_].rglob("*") if path.is_file())
        sha = hashlib.sha1(id_.encode()).hexdigest()
        if kind in (None, "revision"):
            siblings = [{"rfilename": str(path.relative_to(self.models[id_])), **_metadata(path)} for path in files]
            return self._json(request, {"id": id_, "sha": sha, "siblings": siblings, **self._told(id_)})
        if kind == "tree":
            rows = [(str(path.relative_to(self.models[id_])), path) for path in files]
            return self._json(
                request, [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)} for n, p in rows]
            )
        if id_ in self.gated:
            return self._refuse(request, 403, "GatedRepo")
        path = self.models[id_] / name
        if not path.is_file():
            return self._refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": sha})
        return self._file(request, path, sha)

    def _told(self, id_: str) -> dict[str, Any]:
        gated = "manual" if id_ in self.gated else False
        told = {"downloads": 1234, "likes": 1, "private": False, "tags": [], "gated": gated}
        if "safetensors" in self._tags(id_):
            told["safetensors"] = {"parameters": {"BF16": 10**6}, "total": 10**6}
        elif "gguf" in self._tags(id_):
            file = next(path for path in sorted(self.models[id_].glob("*.gguf")) if path.stat().st_size > 10**6)
            told["gguf"] = {"total": 10**6, "architecture": read(file).config["model_type"]}
        config = self._config(id_)
        kept = ("architectures", "auto_map", "model_type", "quantization_config")
        return {**told, "config": {name: config[name] for name in kept if name in config}}

    def _config(self, id_: str) -> dict[str, Any]:
        file = self.models[id_] / "config.json"
        return dict(json.loads(file.read_text())) if file.is_file() else {}

    def _tags(self, id_: str) -> set[str]:
        kinds = {path.suffix.removeprefix(".") for path in self.models[id_].iterdir()} & {"safetensors", "gguf"}
        return kinds | {"image-text-to-text" if "vision_config" in self._config(id_) else "text-generation"}

    def _search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        self.searched.append(query)
        wanted = query.get("search", [""])[0].lower()
        tags = {*query.get("filter", ()), *query.get("pipeline_tag", ())}
        found = [id_ for id_ in self.models if wanted in id_.lower() and tags <= self._tags(id_)]
        return [{"id": id_, **self._told(id_)} for id_ in found]

    def _file(self, request: BaseHTTPRequestHandler, path: Path, sha: str) -> None:
        size = path.stat().st_size
        first, last = 0, size - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
        request.send_response(206 if wanted else 200)
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path.suffix in LARGE:
            headers |= {"X-Linked-Etag": f'"{_etag(path)}"', "X-Linked-Size": str(size)}
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._head(request, headers, last - first + 1)
        if request.command == "HEAD":
            return
        self.asked.append((path.name, first))
        try:
            with path.open("rb") as file:
                file.seek(first)
                while (at := file.tell()) <= last:
                    if at >= self.stops_at and path.suffix in LARGE:
                        self.goes_on.wait()
                    request.wfile.write(file.read(min(BLOCK, last + 1 - at)))
        except OSError:  # who asked went away
            request.close_connection = True

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str, more: dict[str, str] = {}) -> None:  # noqa: B006
        request.send_response(status)
        self._head(request, {"X-Error-Code": code, "X-Error-Message": code, **more}, 0)

    def _json(self, request: BaseHTTPRequestHandler, found: Any) -> None:
        body = json.dumps(found).encode()
        request.send_response(200)
        self._head(request, {"Content-Type": "application/json"}, len(body))
        if request.command != "HEAD":
            request.wfile.write(body)

    def _head(self, request: BaseHTTPRequestHandler, headers: dict[str, str], length: int) -> None:
        for name, value in {**headers, "Content-Length": str(length)}.items():
            request.send_header(name, value)
        request.end_headers()


def _metadata(path: Path) -> dict[str, Any]:
    """What the hub tells with ``blobs=true``."""
    size, etag = path.stat().st_size, _etag(path)
    lfs = {"sha256": etag, "size": size, "pointerSize": 130}
    return {"size": size, "blobId": "0" * 40, "lfs": lfs} if path.suffix in LARGE else {"size": size}


def _etag(path: Path) -> str:
    return (hashlib.sha256 if path.suffix in LARGE else hashlib.sha1)(path.read_bytes()).hexdigest()
