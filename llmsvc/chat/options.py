"""How an answer is made: sampling parameters, thinking and the system prompt, with their bounds."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from llmsvc.engine import SamplingParams
from llmsvc.errors import BadRequest
from llmsvc.formats.templates import Thinking
from llmsvc.models.catalogue import REMOTE
from llmsvc.store.database import Row

DEFAULTS: Row = {
    "temperature": 0.2,
    "top_p": 0.95,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 1024,
    "seed": None,
    "stop": [],
    "json_schema": "",
    "regex": "",
    "system": "",
    "thinking": "",
    "thinking_budget": 0,
}

LOADING: Row = {"context": 0, "keep_alive": 0.0}
"""How a model is loaded. ``context``: tokens that it reads at most, 0 for as many as it was made for; ``keep_alive``:
minutes without use after which it is unloaded, 0 for those of the service, below 0 for never."""

MODES = ("off", "on", "low", "medium", "high")
"""Of thinking; "" leaves it to the model."""
MOST_STOPS = 64
"""Each is looked for in each piece of an answer."""

SAMPLING_LIMITS = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 100_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
    "max_tokens": (1, 1_000_000),
}
LIMITS = {
    **SAMPLING_LIMITS,
    "thinking_budget": (0, 1_000_000),
    "context": (0, 100_000_000),
    "keep_alive": (-1.0, 1e6),
}


def checked(values: Row, known: Row = DEFAULTS) -> Row:
    """Some of the options, each with the right type. Raises BadRequest with the bounds, or for an unknown name."""
    if unknown := set(values) - set(known):
        raise BadRequest(f"Unknown setting: {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    found: Row = {}
    for name, value in values.items():
        check: Callable[[str, Any], Any] = _CHECKS.get(name, _number)
        found[name] = check(name, value)
    return found


def _number(name: str, value: Any) -> float:
    low, high = LIMITS[name]
    try:
        number: float = int(value) if isinstance(low, int) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRequest(f"{name} must be a number, not {value!r}.") from None
    if not low <= number <= high:
        raise BadRequest(f"{name} must be between {low} and {high}, not {number}.")
    return number


def _stops(_: str, value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop must be a string or a list of strings.")
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > MOST_STOPS * 100:
        raise BadRequest(f"stop has at most {MOST_STOPS} strings, which are short. Leave some out.")
    return [stop for stop in stops if stop]


def _seed(_: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int | float) or not 0 <= value < 2**63):
        raise BadRequest("seed must be a whole number from 0 to 2^63 - 1.")
    return None if value is None else int(value)


def _text(_: str, value: Any) -> str:
    """A schema may come as the object that it is."""
    return json.dumps(value) if isinstance(value, dict) else str(value or "")


def _mode(_: str, value: Any) -> str:
    if value and value not in MODES:
        raise BadRequest(f"thinking is one of {', '.join(MODES)}, or empty, not {str(value)[:40]!r}.")
    return str(value or "")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "stop": _stops,
    "seed": _seed,
    "system": _text,
    "json_schema": _text,
    "regex": _text,
    "thinking": _mode,
}


def layered(*layers: Row, known: Row = DEFAULTS) -> Row:
    """What the layers say, each over those before it; without what nobody says. Raises BadRequest."""
    said: Row = {}
    for layer in layers:
        said |= {name: value for name, value in layer.items() if name in known}
    return checked(said, known)


def merged(*layers: Row, known: Row = DEFAULTS) -> Row:
    """All options: the defaults, then each layer over those before it. Raises BadRequest."""
    return layered(known, *layers, known=known)


def brought(sampling: Row) -> Row:
    """Of a model's own sampling what we know of, and what is within our bounds."""
    return usable(sampling, SAMPLING_LIMITS)


def usable(values: Row, names: Iterable[str] = DEFAULTS) -> Row:
    """Those of these options which are as they should be: a file's mistake is no reason to refuse an answer."""
    good: Row = {}
    for name in names:
        if name in values:
            try:
                good |= checked({name: values[name]})
            except BadRequest:
                continue
    return good


def sampling(options: Row) -> SamplingParams:
    """For the engine, from checked options."""
    options = {**DEFAULTS, **options}  # those of an older answer may be fewer
    numbers = {name: options[name] for name in SAMPLING_LIMITS}
    rest = {name: options[name] for name in ("seed", "json_schema", "regex")}
    return SamplingParams(**numbers, **rest, stop=tuple(options["stop"]))


def thinking(options: Row, modes: Iterable[str]) -> Thinking:
    """As near to what is wanted as a model that knows these modes of thinking can come."""
    wanted, known = options.get("thinking", ""), tuple(modes)
    return Thinking(nearest(wanted, known), options.get("thinking_budget", 0))


def nearest(mode: str, modes: tuple[str, ...]) -> str:
    """The mode itself where a model knows it, or one that means nearly the same to it; "" where there is none."""
    others = {"low": ("on",), "medium": ("on",), "high": ("on",), "on": ("medium",), "off": ("low",)}
    return next((one for one in (mode, *others.get(mode, ())) if one in modes), "")


def check_remote(model: str, values: Row) -> None:
    """Raises BadRequest where a model on another server is told how to think: not all of those servers know it."""
    if model.startswith(REMOTE) and (values.get("thinking") or values.get("thinking_budget")):
        raise BadRequest(
            f"{model} is on another server, which decides itself how it thinks. Leave thinking, its effort and its "
            "budget out, or choose a model of this service."
        )


def check_mode(mode: str, modes: tuple[str, ...], model: str) -> None:
    """Raises BadRequest, naming what the model knows, for a mode of thinking that it does not know."""
    if not mode or mode in modes:
        return
    if not modes:
        raise BadRequest(f"{model} knows no modes of thinking. Leave thinking empty, or choose another model.")
    raise BadRequest(f'{model} knows no thinking "{mode}". Choose one of {", ".join(modes)}, or leave it empty.')
