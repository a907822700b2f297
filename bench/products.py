"""What this CPU multiplies 8-bit weights with, and what tokens attend with: each way's time for one pass.

python -m bench.products

All linear layers of SmolLM2-135M's shape, with random numbers, one after another as in a pass, in turns; and attention
of some tokens in each of some rows in its 30 layers. Prints milliseconds, the least of several rounds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llmsvc.engine.compute import wait_briefly

WIDTH, INNER, LAYERS, VOCABULARY, HEADS, SHARED, SIZE = 576, 1536, 30, 49152, 9, 3, 64
LAYER = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
ROUNDS = 5
LONG = 2.0
"""Seconds; what takes longer is done once."""


def least(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, in turns."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            if number and took[name][0] > LONG:
                continue
            start = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - start)
    return {name: 1000 * min(times) for name, times in took.items()}


def show(what: str, found: dict[str, float]) -> None:
    print(f"{what:34}" + "".join(f"{name:>10}{value:9.2f}" for name, value in found.items()), flush=True)


def main() -> None:
    wait_briefly()
    import torch

    from llmsvc.engine import products
    from llmsvc.engine.chunk_attention import attend_parts, attend_up_to

    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        print(f"chosen: {products.choose(Path(folder))}")
    torch.manual_seed(0)
    shapes = [shape for _ in range(LAYERS) for shape in LAYER]
    values = [torch.randint(-127, 128, shape, dtype=torch.int8) for shape in [*shapes, (VOCABULARY, WIDTH)]]
    scales = torch.rand(VOCABULARY)
    halved = [one.bfloat16() for one in values]
    ways = {name: way for name, way in products.WAYS.items() if products._is_right(name)}
    for rows in (1, 8, 32, 256):
        x = {width: torch.randn(rows, width) for width in (WIDTH, INNER)}
        layers = values if rows < 256 else values[:-1]
        passes: dict[str, Callable[[], object]] = {
            name: lambda way=way, x=x, layers=layers: [way(x[w.shape[1]], w, scales[: w.shape[0]]) for w in layers]
            for name, way in ways.items()
        }
        passes["bf16"] = lambda x=x, layers=layers: [
            x[w.shape[1]].bfloat16() @ w.t() for w, _ in zip(halved, layers, strict=False)
        ]
        show(f"products, {rows} rows, ms", least(passes))
    for rows, new, before in ((1, 1, 300), (1, 1, 4000), (32, 1, 300), (1, 256, 0), (1, 256, 768), (1, 64, 4000)):
        length = before + new
        caches = [
            [torch.randn(rows, SHARED, length + 32, SIZE)[:, :, :length] for _ in range(2)]
            for _ in range(min(LAYERS, 960 // rows))
        ]
        query = torch.randn(rows, new, HEADS, SIZE).transpose(1, 2)
        positions = torch.arange(before, length).expand(rows, -1).contiguous()
        mask = torch.arange(length) <= positions[:, None, :, None]

        def plain(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            wide = (part.repeat_interleave(HEADS // SHARED, 1) for part in (keys, values))
            return torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask)  # noqa: B023

        def parts(*pair: torch.Tensor) -> torch.Tensor:
            own, earlier = ([part[:, :, at] for part in pair] for at in (slice(before, length), slice(before)))  # noqa: B023
            return attend_parts(query, own, earlier if before else None, None)  # noqa: B023

        attend: dict[str, Callable[[], object]] = {
            "kernel": lambda: [attend_up_to(query, *pair, positions, None) for pair in caches],  # noqa: B023
            "sdpa": lambda: [plain(*pair) for pair in caches],  # noqa: B023
        }
        if new > 1:
            attend["parts"] = lambda: [parts(*pair) for pair in caches]  # noqa: B023
        show(f"attention, {rows} x {new}, {before} before, ms", least(attend))


if __name__ == "__main__":
    main()
