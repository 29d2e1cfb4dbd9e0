"""
Measures time and memory of the experts. Compares with loops over experts, with Transformers' grouped matrix multiplication,
and with one two-layer network of as many active parameters.

    python benchmarks/moe.py --threads 1 --output docs/benchmarks/moe.json

The gradient of all experts is one large block of memory. glibc requests such a block from the system again in every step, but
keeps the smaller blocks of single experts. With `--keep-memory` it keeps all blocks, as PyTorch's allocator does on a GPU.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.integrations.moe import grouped_mm_experts_forward

from llm_asr.modeling.mixture_of_experts import Experts, Routing


class Size(NamedTuple):
    in_size: int
    hidden_size: int
    out_size: int
    num_experts: int
    num_frames: int
    goal: float  # speed relative to the loop over expert modules, forward and backward
    num_experts_per_tok: int = 2


SIZES = {
    "large": Size(5120, 2048, 3584, 8, 1500, goal=1.0),
    "large, out = in": Size(5120, 2048, 5120, 8, 1500, goal=1.0),
    "small": Size(512, 256, 576, 32, 4000, goal=2.0),
    "small, out = in": Size(512, 256, 512, 32, 4000, goal=2.0),
}
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000"
PASSES = ("forward", "forward+backward")


class Ours(Experts):
    def __init__(self, size: Size):
        super().__init__(size.in_size, size.hidden_size, size.out_size, size.num_experts, "gelu")
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)


class ModuleLoop(nn.Module):
    """A module for each expert. A loop applies each to its frames, as other projectors of this kind do."""

    def __init__(self, size: Size):
        super().__init__()
        self.out_size = size.out_size
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size.in_size, size.hidden_size, bias=False),
                nn.GELU(),
                nn.Linear(size.hidden_size, size.out_size, bias=False),
            )
            for _ in range(size.num_experts)
        )

    def forward(self, hidden_states: Tensor, routing: Routing) -> Tensor:
        outputs = hidden_states.new_zeros(len(hidden_states), self.out_size)
        for index, expert in enumerate(self.experts):
            frame, choice = (routing.selected_experts == index).nonzero(as_tuple=True)
            if len(frame):
                weights = routing.weights[frame, choice, None].to(hidden_states.dtype)
                outputs = outputs.index_add(0, frame, expert(hidden_states[frame]) * weights)
        return outputs


class ParameterLoop(Ours):
    """The same loop over stacked parameters, as in Transformers' models without a faster kernel."""

    def forward(self, hidden_states: Tensor, routing: Routing) -> Tensor:
        outputs = hidden_states.new_zeros(len(hidden_states), self.down_proj.shape[1])
        for index in range(self.num_experts):
            frame, choice = (routing.selected_experts == index).nonzero(as_tuple=True)
            hidden = F.gelu(F.linear(hidden_states[frame], self.up_proj[index]))
            weights = routing.weights[frame, choice, None].to(hidden.dtype)
            outputs = outputs.index_add(0, frame, F.linear(hidden, self.down_proj[index]) * weights)
        return outputs


class TransformersExperts(Ours):
    """Our parameters in Transformers' `grouped_mm_experts_forward`, which needs `out_size == in_size`."""

    has_gate = has_bias = has_post_expert_norm = is_transposed = _is_expert_parallel = False

    def forward(self, hidden_states: Tensor, routing: Routing) -> Tensor:
        weights = routing.weights.to(hidden_states.dtype)
        return grouped_mm_experts_forward(self, hidden_states, routing.selected_experts, weights)


class Monolith(nn.Module):
    """One two-layer network without routing, with as many parameters as a frame uses in its experts."""

    def __init__(self, size: Size):
        super().__init__()
        width = size.hidden_size * size.num_experts_per_tok
        self.up_proj = nn.Linear(size.in_size, width, bias=False)
        self.down_proj = nn.Linear(width, size.out_size, bias=False)

    def forward(self, hidden_states: Tensor, routing: Routing) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden_states)))


IMPLEMENTATIONS = {
    "`Experts` (ours)": Ours,
    "loop over expert modules": ModuleLoop,
    "loop over stacked parameters": ParameterLoop,
    f"Transformers {transformers.__version__} `grouped_mm_experts_forward`": TransformersExperts,
    "one network of equal active parameters": Monolith,
}
OURS, LOOP, *_ = IMPLEMENTATIONS


def build(name: str, size: Size, options: argparse.Namespace) -> tuple[nn.Module, Tensor, Routing]:
    """Create an implementation and its inputs."""
    torch.manual_seed(0)
    kwargs = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    module = IMPLEMENTATIONS[name](size).to(**kwargs)
    hidden_states = torch.randn(size.num_frames, size.in_size).to(**kwargs).requires_grad_()
    router_logits = torch.randn(size.num_frames, size.num_experts).to(options.device)
    weights, selected_experts = router_logits.softmax(-1).topk(size.num_experts_per_tok)
    return module, hidden_states, Routing(router_logits, weights.requires_grad_(), selected_experts)


def run(module: nn.Module, hidden_states: Tensor, routing: Routing, backward: bool) -> float:
    """Measure the seconds of one call."""
    for tensor in (hidden_states, routing.weights, *module.parameters()):
        tensor.grad = None
    synchronize = torch.cuda.synchronize if hidden_states.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        outputs = module(hidden_states, routing)
        if backward:
            outputs.square().sum().backward()
    synchronize()
    return time.perf_counter() - start


def peak_memory(device: str) -> int:
    """Peak memory so far in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def measure_memory(name: str, size: Size, options: argparse.Namespace) -> int:
    """Measure the peak extra bytes of a forward pass, with the tensors for backward, in a separate process."""
    torch.set_num_threads(options.threads)
    module, hidden_states, routing = build(name, size, options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current use
    before = peak_memory(options.device)
    outputs = module(hidden_states, routing)
    return (peak_memory(options.device) - before) * len(outputs) // size.num_frames


def measure(size: Size, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure memory and time of all implementations that support `size`. Times are medians of interleaved repeats."""
    names = [
        name for name, each in IMPLEMENTATIONS.items() if each != TransformersExperts or size.in_size == size.out_size
    ]
    rows = {name: {} for name in names}
    for name in names:
        for factor, key in ((1, "memory"), (2, "memory of twice the frames")):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (name, size._replace(num_frames=factor * size.num_frames), options)
                rows[name][key] = pool.apply(measure_memory, task)
    built = {name: build(name, size, options) for name in names}
    for key in PASSES:
        repeats = [
            [run(*each, backward=key != "forward") for each in built.values()] for _ in range(options.repeats + 1)
        ]
        for name, seconds in zip(names, zip(*repeats[1:], strict=True), strict=True):  # the first repeat warms up
            rows[name][key] = median(seconds)
    return rows


def report(title: str, size: Size, rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table for one size, and whether the goal is met."""
    lines = [
        f"\n### {title}: in {size.in_size}, hidden {size.hidden_size}, out {size.out_size}, {size.num_experts} experts, "
        f"{size.num_experts_per_tok} a frame, {size.num_frames} frames\n",
        "| | forward, ms | forward+backward, ms | memory, MiB | of twice the frames |",
        "|---|" + "---:|" * 4,
    ]
    for name, row in rows.items():
        cells = [f"{1e3 * row[key]:.1f} ({row[key] / rows[OURS][key]:.2f}×)" for key in PASSES]
        cells += [f"{row[key] / 2**20:.0f}" for key in ("memory", "memory of twice the frames")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratio = rows[LOOP][PASSES[1]] / rows[OURS][PASSES[1]]
    verdict = "met" if ratio >= size.goal else "not met"
    lines.append(f"\nForward+backward against the loop: {ratio:.2f}× (goal of {size.goal:.0f}×: {verdict}).")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep large blocks too")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if options.keep_memory and os.environ.get("GLIBC_TUNABLES") != KEEP_MEMORY:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY})
    torch.set_num_threads(options.threads)

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    setting = {"torch": torch.__version__, "device": device, "dtype": options.dtype, "repeats": options.repeats}
    setting["allocator"] = "keeps memory" if options.keep_memory else "default"
    print(*(f"{key} {value}" for key, value in setting.items()), sep=", ")
    results = {}
    for title in options.sizes:
        results[title] = measure(SIZES[title], options)
        print(report(title, SIZES[title], results[title]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
