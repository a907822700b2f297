"""One frozen Settings, from the command line and LLMSVC_* variables."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmsvc.models.catalogue import SMOLLM2

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """How this process serves. Every field is a flag and an environment variable."""

    host: str = "127.0.0.1"
    port: int = 7860
    data_dir: Path = Path("data")
    model: str = SMOLLM2.id
    device: str = "auto"
    no_compile: bool = False
    full_weights: bool = False
    memory: int = 0
    parked_memory: int = 0
    idle_minutes: int = 0
    share: bool = False
    guests: bool = False
    auth: tuple[tuple[str, str], ...] = ()
    api_key: tuple[str, ...] = ()
    remote: tuple[str, ...] = ()
    max_upload: str = "50mb"
    rate_limit: int = 600
    guest_rate_limit: int = 20
    mcp: bool = False
    log_level: str = "info"
    log_json: bool = False

    @property
    def public(self) -> bool:
        """Whether others than this machine's users can reach the port."""
        return self.share or self.host not in _LOOPBACK

    @property
    def max_upload_bytes(self) -> int:
        """As Gradio reads it, whose limit this is too; a chat's files have theirs in bytes of ten."""
        return int(self.max_upload[:-2]) * {"kb": 2**10, "mb": 2**20, "gb": 2**30}[self.max_upload[-2:]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage block."""
        self.exit(2, f"{self.prog}: {message}. See --help.\n")


def parse(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Flags win over variables. A bad value is one line on stderr and exit code 2."""
    parser = _Parser(prog="app.py", description="A self-hosted LLM chat service.", allow_abbrev=False)

    def add(flag: str, help: str, **options: Any) -> None:
        name = flag.strip("-").replace("-", "_")
        variable = f"LLMSVC_{name.upper()}"
        default: Any = getattr(Settings, name)
        if variable in environ:
            default = environ[variable]
            if options.get("action") == "store_true":
                default = _boolean(parser, variable, default)
            elif options.get("action") == "append":
                default = [options["type"](part) for part in _checked(parser, variable, default, options["type"])]
        elif options.get("action") == "append":
            default = []
        parser.add_argument(flag, default=default, help=f"{help} [{variable}]", **options)

    add("--host", "address to listen on (127.0.0.1)")
    add("--port", "port to listen on (7860)", type=_port)
    add("--data-dir", "where chats and models are kept (./data)", type=Path)
    add("--model", "model that answers unless a chat chooses another: a Hugging Face id or a folder", type=_model)
    add("--device", "auto, cpu, cuda or cuda:N", type=_device)
    add(
        "--no-compile",
        "compile nothing for this CPU, neither products nor models",
        action="store_true",
    )
    add("--full-weights", "on a CPU, do not round weights to 8 bits", action="store_true")
    add("--memory", "what loaded models may take together, such as 8gb (0: most of what is free)", type=_bytes)
    add("--parked-memory", "what models that had to go may keep of it (0: a part of what is free)", type=_bytes)
    add("--idle-minutes", "unload models that nobody used for so long (0: never)", type=_count)
    add("--share", "make a public link", action="store_true")
    add("--guests", "let visitors without a login in, each with chats of their own", action="store_true")
    add("--auth", "a login; may be repeated", metavar="USER:PASSWORD", action="append", type=_login)
    add("--api-key", "a key for scripts; may be repeated", metavar="KEY", action="append", type=_key)
    add("--remote", "a server whose models are offered too; may be repeated", metavar="URL", action="append", type=_url)
    add("--max-upload", "largest file that may be uploaded (50mb)", type=_size)
    add("--rate-limit", "answers a minute for each login or key (600; 0: any number)", type=_count)
    add("--guest-rate-limit", "answers a minute for each guest (20; 0: any number)", type=_count)
    add("--mcp", "offer the endpoints as tools of the Model Context Protocol", action="store_true")
    add("--log-level", "debug, info, warning or error", choices=_LOG_LEVELS)
    add("--log-json", "log as JSON, with a line for each request", action="store_true")
    values = vars(parser.parse_args(arguments))
    for name in ("auth", "api_key", "remote"):
        values[name] = tuple(values[name])
    values["data_dir"] = values["data_dir"].expanduser().resolve()
    return Settings(**values)


def _boolean(parser: _Parser, variable: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    return parser.error(f"{variable} must be true or false, not {text!r}")


def _checked(parser: _Parser, variable: str, text: str, kind: Any) -> list[str]:
    parts = [part for part in text.split(",") if part]
    try:
        for part in parts:
            kind(part)
    except argparse.ArgumentTypeError as error:
        parser.error(f"{variable}: {error}")
    return parts


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def _model(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a model is a Hugging Face id or a folder")
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"a device is auto, cpu, cuda or cuda:N, not {text!r}")
    return text


def _login(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user.strip() == user != "" and colon and password) or user.startswith("guest:"):
        raise argparse.ArgumentTypeError("a login is USER:PASSWORD")
    return user, password


def _key(text: str) -> str:
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("a key has 16 or more characters, without spaces: it must not be guessed")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text):
        raise argparse.ArgumentTypeError("a server is given as http://HOST:PORT or https://HOST")
    return text


def _bytes(text: str) -> int:
    return 0 if text == "0" else in_bytes(_size(text))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"this is a whole number from 0, not {text!r}")
    return int(text)


def in_bytes(size: str) -> int:
    """``50mb`` as a number."""
    return int(size[:-2]) * {"kb": 10**3, "mb": 10**6, "gb": 10**9}[size[-2:]]


def _size(text: str) -> str:
    if not re.fullmatch(r"\d+(kb|mb|gb)", text.lower()):
        raise argparse.ArgumentTypeError(f"a size is a number and kb, mb or gb, not {text!r}")
    return text.lower()
