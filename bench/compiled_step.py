"""How fast a decode step of the embedded model can be on this CPU: as it is, and compiled with int8 weights.

python -m bench.compiled_step [DATA_DIR] [--rows 1,8]

A probe for the engine to come, of which ``bench/README.md`` tells; nothing of it is in the service. Compiling takes one
to two minutes for each number of rows. Prints tokens/s by cached length, and the perplexity of the rounded weights.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmsvc.engine.kv_cache import SlotLayer, Step
from llmsvc.engine.runner import Runner
from llmsvc.models.catalogue import SMOLLM2, Catalogue

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (60, 250, 1000, 4000)


def round_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Round every linear weight to int8 with one scale for each output channel, in place; return what int8 says."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            scales = module.weight.abs().amax(1).clamp(min=1e-12) / 127
            values = (module.weight / scales[:, None]).round().to(torch.int8)
            torch.mul(values, scales[:, None], out=module.weight)
            found[f"{name}.values"], found[f"{name}.scales"] = values, scales
    return found


class IntLinear(nn.Module):
    """A linear layer as plain sums, of which the compiler makes one loop that reads the int8 weights once."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(linear.weight.shape, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(len(linear.weight)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        # as_strided: x is written to memory, and not computed again for each output channel.
        flat = x.contiguous().as_strided((rows, width), (width, 1))
        # One stream does not keep the memory busy; more rows than these keep the core busy.
        streams = {1: 4, 2: 4, 3: 2, 4: 2}.get(rows, 1)
        parts = self.values.view(streams, -1, width)
        out = torch.stack([torch.cat([(row * part).sum(-1) for part in parts]) for row in flat]) * self.scales
        return out.view(*x.shape[:-1], -1)


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Of one new token in each row: heads that share keys are grouped, and the keys not repeated for them."""
    rows, heads, new, size = query.shape
    if new > 1:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    grouped = query.view(rows, key.shape[1], -1, size) * (options.get("scaling") or size**-0.5)
    scores = torch.stack([(one.unsqueeze(2) * key).sum(-1) for one in grouped.unbind(2)], 2)
    weights = scores.masked_fill(~attention_mask, float("-inf")).softmax(-1)
    return torch.matmul(weights, value).reshape(rows, 1, heads, size), None


class GivenLayer(SlotLayer):
    """A layer whose keys and values are given, and large enough."""

    def __init__(self, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__(len(keys), step)
        self.keys, self.values, self.is_initialized = keys, values, True

    def _grow(self, length: int) -> None:
        return


class Decode(nn.Module):
    """The unmodified model over slots that are given to it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, positions: Any, mask: Any, keys: Any, values: Any) -> torch.Tensor:
        step = Step(0, ids.shape[0], positions, mask.shape[-1])
        cache = Cache(layers=[GivenLayer(step, *pair) for pair in zip(keys, values, strict=True)])
        logits: torch.Tensor = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits
        return logits[:, -1]


def inputs(config: Any, rows: int, length: int) -> tuple[Any, ...]:
    """A step at the end of ``length`` tokens."""
    shape = (rows, config.num_key_value_heads, max(512, length + 96), config.head_dim)
    slots = [[torch.randn(shape) for _ in range(config.num_hidden_layers)] for _ in range(2)]
    positions = torch.full((rows, 1), length - 1)
    return torch.full((rows, 1), 5), positions, torch.ones(rows, 1, 1, length, dtype=torch.bool), *slots


def compiled(model: Any, weights: dict[str, torch.Tensor], rows: int, folder: str) -> Any:
    """The step as a call. A package holds no weights, so the ones of the model are lent to it."""
    config, free = model.config, {2: Dim("capacity", min=2, max=2**20)}
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for module in list(other.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, IntLinear(child))
    other.config._attn_implementation = "grouped"
    layers = [free] * config.num_hidden_layers
    shapes = (None, None, {3: Dim("length", min=2, max=2**20)}, layers, layers)
    exported = torch.export.export(Decode(other), inputs(config, rows, 100), dynamic_shapes=shapes, strict=False)
    package = torch._inductor.aoti_compile_and_package(
        exported,
        package_path=f"{folder}/{rows}.pt2",
        inductor_configs={"aot_inductor.package_constants_in_so": False},
    )
    loaded = torch._inductor.aoti_load_package(package)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers()), **weights}
    lent = {name: own[name.removeprefix("model.")].detach() for name in loaded.get_constant_fqns()}
    loaded.load_constants(lent, check_full_update=True, user_managed=True)
    return lambda ids, positions, mask, keys, values: (
        loaded.loader.boxed_run([ids, positions, mask, *keys, *values])[0],
        lent,
    )[0]


def perplexity(model: Any, ids: list[int], window: int = 1024) -> float:
    losses = []
    for start in range(0, len(ids) - window + 1, window):
        tokens = torch.tensor([ids[start : start + window]])
        losses.append(nn.functional.cross_entropy(model(tokens).logits[0, :-1].float(), tokens[0, 1:]))
    return float(torch.stack(losses).mean().exp())


def speed(step: Any, rows: int, config: Any) -> str:
    """Tokens/s by length."""
    found = []
    for length in LENGTHS:
        given = inputs(config, rows, length)
        for _ in range(5):
            step(*given)
        start = time.perf_counter()
        for _ in range(30):
            step(*given)
        found.append(f"{rows * 30 / (time.perf_counter() - start):6.0f} at {length}")
    return ", ".join(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default=str(ROOT / "data"))
    parser.add_argument("--rows", default="1,8")
    options = parser.parse_args()
    folder = Catalogue(Path(options.data) / "models").folder(SMOLLM2.id)
    AttentionInterface.register("grouped", attention)
    text = (ROOT / "LICENSE").read_text() + (ROOT / "docs" / "architecture.md").read_text()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        print(f"{dtype}: perplexity {perplexity(model, ids):.3f}")
        for rows in map(int, options.rows.split(",")):
            runner = Runner(model, rows)
            runner.prefill(0, [7] * 60, 0)
            for _ in range(5):
                runner.decode(dict.fromkeys(range(rows), 5), [60] * rows)
            start = time.perf_counter()
            for n in range(30):
                runner.decode(dict.fromkeys(range(rows), 5), [61 + n] * rows)
            print(f"{dtype}, {rows} rows: {rows * 30 / (time.perf_counter() - start):.0f} tokens/s at 60", flush=True)
    weights = round_weights(model)
    print(f"rounded to int8: perplexity {perplexity(model, ids):.3f}")
    with tempfile.TemporaryDirectory() as packages:
        for rows in map(int, options.rows.split(",")):
            start = time.perf_counter()
            step = compiled(model, weights, rows, packages)
            print(f"compiled {rows} rows in {time.perf_counter() - start:.0f} s")
            given = inputs(model.config, rows, 300)
            again = [x.clone() if torch.is_tensor(x) else [y.clone() for y in x] for x in given]
            difference = (step(*given) - Decode(model)(*again)).abs().max()
            print(f"largest difference of a logit: {float(difference):.5f}")
            print(f"compiled, {rows} rows, tokens/s: {speed(step, rows, model.config)}", flush=True)


if __name__ == "__main__":
    main()
