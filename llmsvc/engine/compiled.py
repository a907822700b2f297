"""Steps of one model, compiled ahead of time for a CPU.

``one`` computes one token, ``chunk`` any number of them, of any slots: pieces of prompts, and tokens that are decoded.
``fill`` reads a piece of which nobody asks what comes next: the last layer only writes its keys and values.
``python -m llmsvc.engine.compiled CONFIG_DIR KIND OUT WAY TYPE`` makes one, in a process of its own: it takes minutes
of a core. WAY and TYPE are what ``ways_of`` says. All attend by a kernel of ours.
It holds no weights: it belongs to an architecture, and is lent the weights of the model that is loaded.

torch.export and AOTInductor: https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html. The library is
called through its C interface (torch/csrc/inductor/aoti_runtime/interface.h) by ctypes, which lets go of the
interpreter's lock meanwhile; torch's own loader keeps it for the whole step, and everything else would wait.
"""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch._C import _aoti
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights

from llmsvc.engine.cache.attention import SlotLayer
from llmsvc.engine.cache.kept import kept_in
from llmsvc.engine.cache.kinds import FULL, kinds_of, kv_shape
from llmsvc.engine.cache.placed import Step
from llmsvc.engine.chunk_attention import NAME, OTHERS, fits_kernel
from llmsvc.engine.int8 import Int8Linear, replace_linears
from llmsvc.engine.kernels import compiler, kernels_name
from llmsvc.engine.products import halves

CHUNK = 512
"""Tokens of a prompt that is read alone, in a step at most."""
_LONGEST = 2**20
"""Positions, or tokens, that a step admits; the model's window is checked elsewhere."""

_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
_POINTER.restype, _POINTER.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Constant(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("handle", ctypes.c_void_p))


class CompiledStep:
    """A compiled forward pass. Used by one thread at a time."""

    def __init__(self, library: Path, model: Any) -> None:
        """Raises OSError or RuntimeError for a bad library, ValueError when the model has not what it wants."""
        self._library = ctypes.CDLL(str(library))
        self._container = ctypes.c_void_p()
        self._library.llmsvc_lend.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self._memory: Any = None
        self._numbers = 0
        self._call("CreateWithDevice", ctypes.byref(self._container), ctypes.c_size_t(1), b"cpu", None)
        own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        wanted = self._constants()
        if missing := [name for name in wanted.values() if name not in own]:
            raise ValueError(f"the compiled step wants {missing[:3]}")
        self._weights = [own[name].detach() for name in wanted.values()]  # lent: they must not be freed
        self._lent = [_aoti.unsafe_alloc_void_ptr_from_tensor(weight) for weight in self._weights]
        pairs = (_Constant * len(wanted))(
            *(_Constant(name, _POINTER(lent, None)) for name, lent in zip(wanted, self._lent, strict=True))
        )
        self._call(
            "UpdateUserManagedConstantBufferPairs", self._container, pairs, ctypes.c_size_t(len(pairs)), False, True
        )

    def __call__(
        self,
        ids: list[int],
        positions: list[int],
        slots: list[int],
        wanted: list[int],
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        """Logits of shape (wanted, vocabulary), of the new tokens with the numbers ``wanted``; the next call takes
        their memory.

        ``positions`` and ``slots``: of each new token, where it is written, and up to where it looks; ``wanted``: of a
        "fill" of no matter; ``keys`` and ``values``: by layer, (slots, heads, capacity, head size). Raises
        RuntimeError.
        """
        several = wanted * 2 if len(wanted) == 1 < len(ids) else wanted  # more than one, as it must be
        tensors = [torch.tensor([ids]), torch.tensor([positions, slots]), torch.tensor(several), *keys, *values]
        given = _aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)  # taken by the call
        inputs = (ctypes.c_void_p * len(given))(*(_POINTER(one, None) for one in given))
        outputs = (ctypes.c_void_p * 1)()
        sizes = ctypes.c_size_t(len(given)), ctypes.c_size_t(1)
        self._library.llmsvc_lend(self._memory and _POINTER(self._memory, None), self._numbers)
        self._call("Run", self._container, inputs, sizes[0], outputs, sizes[1], None, None)
        logits: torch.Tensor = _aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(outputs[0]))
        if logits.numel() > self._numbers:
            self._keep(torch.empty(logits.numel(), dtype=torch.float32))
        return logits[0, -len(wanted) :]

    def _keep(self, memory: torch.Tensor | None) -> None:
        """Have memory for the logits of the next call, or none."""
        if self._memory:
            _aoti.alloc_tensor_by_stealing_from_void_ptr(self._memory)
        self._numbers = 0 if memory is None else memory.numel()
        self._memory = None if memory is None else _aoti.unsafe_alloc_void_ptr_from_tensor(memory)

    def close(self) -> None:
        """Give the weights back."""
        if self._container:
            self._call("Delete", self._container)
            self._container = ctypes.c_void_p()
            for lent in self._lent:
                _aoti.alloc_tensor_by_stealing_from_void_ptr(lent)
            self._weights, self._lent = [], []
            self._keep(None)

    def _constants(self) -> dict[bytes, str]:
        """The model's names of the library's constants, by the library's."""
        count, found = ctypes.c_size_t(), {}
        self._call("GetNumConstants", self._container, ctypes.byref(count))
        for number in range(count.value):
            name, original = ctypes.c_char_p(), ctypes.c_char_p()
            self._call("GetConstantName", self._container, ctypes.c_size_t(number), ctypes.byref(name))
            self._call("GetConstantOriginalFQN", self._container, ctypes.c_size_t(number), ctypes.byref(original))
            found[name.value or b""] = (original.value or b"").decode().removeprefix("model.")
        return found

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, f"AOTInductorModelContainer{name}")(*arguments):
            raise RuntimeError(f"the compiled step failed at {name}")


_NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
_NEW_CAPSULE.restype, _NEW_CAPSULE.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _capsule(pointer: int | None) -> Any:
    return _NEW_CAPSULE(pointer, None, None)


class KernelLinear(nn.Module):
    """An Int8Linear in a graph, by the kernel that the process has loaded."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # None of it takes memory until it is written to.
        (channels, width), coarse = linear.weight.shape, getattr(linear, "of_4_bits", False)
        records = torch.empty(channels // 16, width // 32, 320, dtype=torch.uint8)
        self.register_buffer("values", records if coarse else torch.empty(channels, width, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(0 if coarse else channels))
        self.bias, self.last = linear.bias, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.multiplied(x.reshape(-1, x.shape[-1]))
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)

    def multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        product = torch.ops.llmsvc.logits if self.last else torch.ops.llmsvc.int8_linears
        out: torch.Tensor = product(rows.contiguous(), [self.values], [self.scales])
        return out


class IntegerLinear(KernelLinear):
    """By the processor's own integers. Their product is not changed in place, which compiles badly."""

    def multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        both, step = halves(rows)
        product, count = torch._int_mm(both, self.values.t()), step.shape[0]
        return (product[:count].float() * 256 + product[count:].float()) * step * self.scales


_LINEARS = """
void llmsvc_int8_linears(const float*, const int8_t* const*, const float* const*, const int64_t*, int64_t, float*,
                         int64_t, int64_t);
using Memory = AOTITorchError(const int64_t*, AtenTensorHandle*);
static AOTITorchError int8_linears(AtenTensorHandle x, const AtenTensorHandle* values, int64_t count,
                                   const AtenTensorHandle* scales, AtenTensorHandle* out, Memory memory) {
    std::vector<void*> weights(count), factors(count);
    std::vector<int64_t> channels(count);
    void *from, *to;
    int64_t sizes[2] = {}, width;
    for (int64_t n = 0; n < count; n++) {
        aoti_torch_get_data_ptr(values[n], &weights[n]), aoti_torch_get_data_ptr(scales[n], &factors[n]);
        int64_t dimensions;
        aoti_torch_get_dim(values[n], &dimensions), aoti_torch_get_size(values[n], 0, &channels[n]);
        if (dimensions == 3) factors[n] = nullptr, channels[n] *= 16;
        sizes[1] += channels[n];
    }
    aoti_torch_get_size(x, 0, &sizes[0]), aoti_torch_get_size(x, 1, &width);
    if (memory(sizes, out)) return AOTI_TORCH_FAILURE;
    aoti_torch_get_data_ptr(x, &from), aoti_torch_get_data_ptr(*out, &to);
    llmsvc_int8_linears(static_cast<float*>(from), reinterpret_cast<int8_t**>(weights.data()),
                        reinterpret_cast<float**>(factors.data()), channels.data(), count, static_cast<float*>(to),
                        sizes[0], width);
    return AOTI_TORCH_SUCCESS;
}
static AOTITorchError fresh(const int64_t* sizes, AtenTensorHandle* out) {
    const int64_t strides[] = {sizes[1], 1};
    const int32_t type = aoti_torch_dtype_float32(), cpu = aoti_torch_device_type_cpu();
    return aoti_torch_empty_strided(2, sizes, strides, type, cpu, 0, out);
}
AOTITorchError aoti_torch_cpu_int8_linears(AtenTensorHandle x, const AtenTensorHandle* values, int64_t count,
                                           const AtenTensorHandle* scales, int64_t, AtenTensorHandle* out) {
    return int8_linears(x, values, count, scales, out, fresh);
}
static thread_local AtenTensorHandle lent;
static thread_local int64_t numbers;
__attribute__((visibility("default"))) void llmsvc_lend(AtenTensorHandle memory, int64_t size) {
    lent = memory, numbers = size;
}
static AOTITorchError again(const int64_t* sizes, AtenTensorHandle* out) {
    if (sizes[0] * sizes[1] > numbers) return fresh(sizes, out);
    const int64_t strides[] = {sizes[1], 1};
    return aoti_torch__reinterpret_tensor(lent, 2, sizes, strides, 0, out);
}
AOTITorchError aoti_torch_cpu_logits(AtenTensorHandle x, const AtenTensorHandle* values, int64_t count,
                                     const AtenTensorHandle* scales, int64_t, AtenTensorHandle* out) {
    return int8_linears(x, values, count, scales, out, again);
}
"""
"""How a compiled step calls the kernel: put before the compiler's own code, which knows the types. Logits have memory
that is lent: what is new the system clears page by page, for many rows a twentieth of a step."""
_ATTEND = """
void llmsvc_attend(const float*, const void*, const void*, const int64_t*, const int64_t*, float*, float, int64_t,
                   int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
AOTITorchError aoti_torch_cpu_attend(AtenTensorHandle query, AtenTensorHandle keys, AtenTensorHandle values,
                                     AtenTensorHandle places, double scale, AtenTensorHandle* out) {
    void *asked, *there, *what, *where, *to;
    int64_t *asking, *held, *across, *by, *also;
    aoti_torch_get_sizes(query, &asking), aoti_torch_get_sizes(keys, &held), aoti_torch_get_strides(query, &across);
    aoti_torch_get_strides(keys, &by), aoti_torch_get_strides(values, &also);
    const int64_t rows = asking[0], heads = asking[1], tokens = asking[2], size = asking[3], token = heads * size;
    int32_t type;
    aoti_torch_get_dtype(keys, &type);
    const int64_t bits = type == aoti_torch_dtype_float16() ? 16 : 32;
    if (across[3] != 1 || by[2] != size || by[3] != 1)
        return AOTI_TORCH_FAILURE;
    for (int n = 0; n < 4; n++)
        if (by[n] != also[n]) return AOTI_TORCH_FAILURE;
    const int64_t sizes[] = {rows, tokens, heads, size}, strides[] = {tokens * token, token, size, 1};
    if (aoti_torch_empty_strided(4, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, out))
        return AOTI_TORCH_FAILURE;
    aoti_torch_get_data_ptr(query, &asked), aoti_torch_get_data_ptr(keys, &there);
    aoti_torch_get_data_ptr(values, &what), aoti_torch_get_data_ptr(places, &where);
    aoti_torch_get_data_ptr(*out, &to);
    const int64_t* const positions = static_cast<int64_t*>(where);
    const int64_t* const slots = positions + rows * tokens;
    llmsvc_attend(static_cast<float*>(asked), there, what, positions, slots, static_cast<float*>(to), scale, bits, rows,
                  heads, held[1], tokens, size, across[0], across[1], across[2], by[0], by[1]);
    return AOTI_TORCH_SUCCESS;
}
"""


def _know_kernels() -> dict[Any, list[str]]:
    """Tell torch of the kernels as operators of which steps can be made; returns how they are to call them."""
    exact = (torch.Tag.needs_exact_strides,)  # views of the cache stay views

    def multiplied(x: torch.Tensor, values: list[torch.Tensor], _: list[torch.Tensor]) -> torch.Tensor:
        return x.new_empty(x.shape[0], sum(some.shape[0] * (16 if some.dim() == 3 else 1) for some in values))

    for name in ("llmsvc::int8_linears", "llmsvc::logits"):
        torch.library.define(name, "(Tensor x, Tensor[] values, Tensor[] scales) -> Tensor")
        torch.library.register_fake(name, multiplied)
    schema = "(Tensor query, Tensor keys, Tensor values, Tensor places, float scale) -> Tensor"
    torch.library.define("llmsvc::attend", schema, tags=exact)
    torch.library.register_fake("llmsvc::attend", lambda query, *_: query.new_empty(query.transpose(1, 2).shape))
    ours = torch.ops.llmsvc
    return {ours.int8_linears.default: [_LINEARS], ours.logits.default: [], ours.attend.default: [_ATTEND]}


class _Step(nn.Module):
    """What is compiled: the unmodified model over slots that are given to it."""

    def __init__(self, model: Any, silent: bool) -> None:
        super().__init__()
        self.model, self.silent = model, silent

    def forward(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        wanted: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        """``places``: (2, new), positions and slots."""
        positions, slots = places[:1], places[1:]
        step = Step(0, keys[0].shape[0], slots, positions, keys[0].shape[2], 0)
        output = self.model(
            input_ids=ids,
            attention_mask=places[None, None],  # what has four dimensions reaches the attention as it is
            position_ids=positions,
            past_key_values=Cache(layers=[SlotLayer.over(step, *pair) for pair in zip(keys, values, strict=True)]),
            use_cache=True,
            logits_to_keep=wanted,
        )
        if self.silent:  # what only leads to the logits is left out of the graph
            return ids[:, :, None].float()
        return output.logits  # type: ignore[no-any-return]


def why_not(model: Any) -> str:
    """Why a model's steps are not to be compiled, or nothing."""
    config = model.config.get_text_config()
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return "it is not computed in 32 bits on a CPU"
    if not any(isinstance(module, Int8Linear) for module in model.modules()):
        return "its weights have not 8 bits"
    kind = model.config._attn_implementation
    if {layer.name for layer in kinds_of(config)} != {FULL} or kind not in ("sdpa", NAME):
        return "its attention is of several kinds, or sees a part of the text"
    if _way(model) == "widened":
        return "its weights are widened before they are multiplied"
    if not fits_kernel(kv_shape(config)[2]):
        return "there is no kernel for its attention here"
    return "" if compiler() else "there is no C++ compiler here"


def _way(model: Any) -> str:
    return next(module.way for module in model.modules() if isinstance(module, Int8Linear))


def ways_of(model: Any, kind: str) -> tuple[str, str]:
    """How a model's step is to multiply its weights, and in what type its keys and values are kept.

    For one row what counts is how fast weights are read.
    """
    return "kernel" if kind == "one" else _way(model), str(kept_in(model)).removeprefix("torch.")


def library_name(model: Any, kind: str) -> str:
    """A file name that changes with all that a step depends on."""
    sources = [
        (Path(__file__).parent / name).read_text()
        for name in ("blocks.py", "chunk_attention.py", "compiled.py", "int8.py", "cache/attention.py", "products.py")
    ]
    versions = (torch.__version__, transformers.__version__, torch.get_num_threads(), model.dtype.itemsize)
    parts = (model.config.to_json_string(), *versions, kernels_name(), *ways_of(model, kind), *sources)
    return f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}-{kind}.so"


def _attention(
    silent: int,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by the kernel. Of the layer ``silent`` nobody needs it."""
    if module.layer_idx == silent:
        return query.transpose(1, 2), None
    if any(options.get(name) is not None for name in OTHERS):
        raise NotImplementedError("attention with more than keys and values")
    scale = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    return torch.ops.llmsvc.attend(query, key, value, attention_mask[0, 0], scale), None


def _written(module: nn.Module, given: Any, found: Any) -> Any:
    """A module's tensors, as memory: the compiler would compute angles again for each use of them in each layer."""
    if not isinstance(found, tuple):
        return found
    return tuple(part.contiguous().as_strided(part.shape, part.stride()) for part in found)


def _merge_linears(exported: Any) -> None:
    """Have layers that read the same rows do so in one call: they are rounded once, and threads meet once."""
    aten, linears = torch.ops.aten, torch.ops.llmsvc.int8_linears.default
    only_named = (aten.view.default, aten.reshape.default, aten.contiguous.default, aten.clone.default)
    graph = exported.graph
    graph.eliminate_dead_code()

    def origin(node: Any) -> Any:
        while node.target in only_named:
            node = node.args[0]
        return node

    changed, calls = set(), dict[Any, list[Any]]()
    for node in graph.nodes:
        if node.target is linears:
            calls.setdefault((origin(node.args[0]), node.args[0].meta["val"].shape[1]), []).append(node)
        elif getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            changed.add(origin(node.args[0]))

    def call(target: Any, *arguments: Any) -> Any:
        node = graph.call_function(target, arguments)
        node.meta["val"] = target(*torch.fx.node.map_arg(arguments, lambda one: one.meta["val"]))
        return node

    for nodes in (nodes for (rows, _), nodes in calls.items() if len(nodes) > 1 and rows not in changed):
        with graph.inserting_before(nodes[0]):
            values, scales = ([node.args[which][0] for node in nodes] for which in (1, 2))
            merged, at = call(linears, nodes[0].args[0], values, scales), 0
            for node in nodes:
                end = at + node.meta["val"].shape[1]
                node.replace_all_uses_with(call(aten.slice.Tensor, merged, 1, at, end))
                at = end
        for node in nodes:
            graph.erase_node(node)
    graph.lint()
    exported.graph_module.recompile()


def build(config_dir: Path, kind: str, out: Path, way: str, kept: str) -> None:
    """Compile a step of the model whose config.json is in ``config_dir``; ``out`` is complete or not there."""
    # Before a minute goes by: a compiler may be there and not work.
    subprocess.run([compiler() or "c++", "-x", "c++", "-fsyntax-only", "-"], input=b"#include <vector>", check=True)
    torch.set_grad_enabled(False)
    config = AutoConfig.from_pretrained(config_dir, local_files_only=True)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name in getattr(config, "weights_of_4_bits", ()):
        model.get_submodule(name).of_4_bits = True
    replace_linears(model, KernelLinear if way == "kernel" else IntegerLinear)
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            module.register_forward_hook(_written)
    if isinstance(output := model.get_output_embeddings(), KernelLinear):
        output.last = True
    calls = _know_kernels()
    layers, heads, size = kv_shape(config.get_text_config())
    AttentionInterface.register("llmsvc", partial(_attention, layers - 1 if kind == "fill" else layers))
    model.config._attn_implementation = "llmsvc"

    def dim(name: str) -> Any:
        return torch.export.Dim(name, min=2, max=_LONGEST)

    new, wanted, several = (1, 1, None) if kind == "one" else (CHUNK // 2, 3, dim("new"))
    keys = [torch.zeros(3, heads, 512, size, dtype=getattr(torch, kept)) for _ in range(layers)]
    slots = {0: dim("slots"), 2: dim("capacity")}
    exported = torch.export.export(
        _Step(model, kind == "fill"),
        (
            torch.zeros(1, new, dtype=torch.long),
            torch.zeros(2, new, dtype=torch.long),
            torch.zeros(wanted, dtype=torch.long),
            keys,
            [torch.zeros_like(one) for one in keys],
        ),
        dynamic_shapes=(
            several and {1: several},
            several and {1: several},
            several and {0: dim("wanted")},
            [slots] * layers,
            [slots] * layers,
        ),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    _merge_linears(exported)
    package, half = out.with_suffix(f".{os.getpid()}.pt2"), out.with_suffix(f".{os.getpid()}.so")
    options = {
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.custom_ops_to_c_shims": calls,
        # A single row is summed by one thread, in the order in which it is where there are more of them.
        **({"cpp.min_chunk_size": 2**16} if kind == "one" else {}),
    }
    try:
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package), inductor_configs=options)
        with zipfile.ZipFile(package) as parts, half.open("wb") as file:
            (library,) = (name for name in parts.namelist() if name.endswith(".so"))
            file.write(parts.read(library))
            file.flush()
            os.fsync(file.fileno())
        half.rename(out)
    finally:
        package.unlink(missing_ok=True)
        half.unlink(missing_ok=True)


def _die_with(parent: int) -> None:
    """End this process and its compilers when the service was killed: nobody would wait for them."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _give_way() -> None:
    """Whoever chats meanwhile goes first.

    Linux shares a core among sessions before it looks at their processes, and this is one of its own: an answer, whose
    cores wait for each other hundreds of times in a step, then came at 1 token in a second (sched(7), autogroup).
    """
    os.nice(19)
    with suppress(OSError):  # other systems have none
        Path("/proc/self/autogroup").write_text("19")


if __name__ == "__main__":
    _give_way()
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    build(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
