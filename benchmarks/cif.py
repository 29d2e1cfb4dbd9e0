"""
Time, memory and error of `integrate_and_fire` and of published implementations of Continuous Integrate-and-Fire.

    python benchmarks/cif.py --install --threads 1 --output docs/benchmarks/cif.json
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


PEERS = Path(__file__).with_name(".peers")
TORCH_CIF, FUNASR = "torch-cif==0.2.0", "funasr==1.4.16"
SIZES = {"small": [(2, 60, 16)], "all": [(8, 1500, 1280), (32, 500, 512), (1, 30000, 512)]}
LONG = 10_000  # frames from which on slow loops are left out
GOAL = 8.0
PASSES = ("forward", "forward+backward")

# Takes hidden states and alphas; returns embeddings, padded (3 dimensions) or packed (2). The threshold is 1.
Function = Callable[[Tensor, Tensor], Tensor]


def load_ours() -> Function:
    from llm_asr.modeling.cif import integrate_and_fire

    return lambda hidden, alphas: integrate_and_fire(hidden, alphas, tail_threshold=math.inf).embeds


def load_torch_cif() -> Function:
    from torch_cif import cif_function

    return lambda hidden, alphas: cif_function(hidden, alphas, tail_thres=math.inf, unbound_alpha=True)["cif_out"][0]


def load_funasr(name: str) -> Function:
    # On import FunASR prints what it lacks; this module lacks nothing.
    with contextlib.redirect_stdout(None):
        from funasr.models.paraformer import cif_predictor
    return lambda hidden, alphas: getattr(cif_predictor, name)(hidden, alphas, 1.0)[0]


def frame_loop(hidden: Tensor, alphas: Tensor, unbind: bool) -> Tensor:
    """
    Equations 1-4 of arXiv 1905.11235, one frame after another; packed.

    Indexing the frames, as CIF-PyTorch and FunASR do, makes backward quadratic in their number: the gradient of each is
    as large as `hidden`. Unbinding them does not.
    """
    indexed = ((hidden[:, index], alphas[:, index]) for index in range(hidden.shape[1]))
    level, state = torch.zeros_like(alphas[:, 0]), torch.zeros_like(hidden[:, 0])
    states, fires = [], []
    for frame, weight in zip(hidden.unbind(1), alphas.unbind(1), strict=True) if unbind else indexed:
        fires.append(level + weight >= 1.0)
        used = torch.where(fires[-1], 1.0 - level, weight)
        states.append(state + used[:, None] * frame)
        level = torch.where(fires[-1], weight - used, level + weight)
        state = torch.where(fires[-1][:, None], (weight - used)[:, None] * frame, states[-1])
    return torch.stack(states, 1)[torch.stack(fires, 1)]


class Implementation(NamedTuple):
    """A row of the tables. A slow one runs once, in the process that measures its memory."""

    load: Callable[[], Function]
    requirement: str | None = None
    is_slow: bool = False

    @property
    def is_installed(self) -> bool:
        installed = {f"{package.name}=={package.version}" for package in metadata.distributions()}
        return self.requirement is None or self.requirement in installed


OURS = "`integrate_and_fire` (ours)"
IMPLEMENTATIONS = {
    OURS: Implementation(load_ours),
    "torch-cif 0.2.0 `cif_function`": Implementation(load_torch_cif, TORCH_CIF),
    "FunASR 1.4.16 `cif_v1`": Implementation(partial(load_funasr, "cif_v1"), FUNASR),
    "FunASR 1.4.16 `cif` (loop)": Implementation(partial(load_funasr, "cif"), FUNASR, is_slow=True),
    "the paper's loop, re-implemented, indexing frames as CIF-PyTorch does": Implementation(
        lambda: partial(frame_loop, unbind=False), is_slow=True
    ),
    "the paper's loop, re-implemented, unbinding frames": Implementation(lambda: partial(frame_loop, unbind=True)),
}


def make_inputs(size: tuple[int, int, int], device: str, mean: float = 0.1) -> tuple[Tensor, Tensor]:
    """Frames and weights; a quarter of an embedding is left at the end of each row, so that no fire hangs on rounding."""
    generator = torch.Generator().manual_seed(0)
    alphas = torch.rand(size[:2], generator=generator) * 2 * mean
    total = alphas.sum(1, keepdim=True)
    alphas = alphas * (total.floor() + 0.25) / total
    hidden = torch.randn(size, generator=generator)
    return hidden.to(device).requires_grad_(), alphas.to(device).requires_grad_()


def run(function: Function, hidden: Tensor, alphas: Tensor, backward: bool) -> float:
    """Seconds of one call. The loss is the sum of squares, so that every embedding has a gradient."""
    hidden.grad = alphas.grad = None
    synchronize = torch.cuda.synchronize if hidden.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        embeds = function(hidden, alphas)
        if backward:
            embeds.square().sum().backward()
    synchronize()
    return time.perf_counter() - start


def peak_memory(device: str, reset: bool = False) -> int:
    """
    Highest memory in use since the last reset, in bytes; zero where the system does not tell.

    On CPU it is the kernel's mark for this process and not `ru_maxrss`, which a process inherits from its parent.
    """
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def measure_once(name: str, size: tuple[int, int, int], device: str, threads: int, backward: bool) -> dict[str, float]:
    """Seconds and peak extra bytes of one call, in a process of its own."""
    torch.set_num_threads(threads)
    function = IMPLEMENTATIONS[name].load()
    run(function, *make_inputs((2, 60, 16), device), backward)
    inputs = make_inputs(size, device)
    before = peak_memory(device, reset=True)
    seconds = run(function, *inputs, backward)
    return {"seconds": seconds, "memory": peak_memory(device) - before}


def measure(size: tuple[int, int, int], options: argparse.Namespace) -> dict[str, dict]:
    """Memory and median time of interleaved repeats of each implementation, or a note why there is none."""
    rows, functions = {}, {}
    for name, implementation in IMPLEMENTATIONS.items():
        rows[name] = {}
        if not implementation.is_installed:
            rows[name]["note"] = "not installed (run with --install)"
        elif implementation.is_slow and size[1] >= LONG and not options.slow:
            rows[name]["note"] = "left out (run with --slow)"
        else:
            for key in PASSES:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    task = (name, size, options.device, options.threads, key != "forward")
                    rows[name][key] = pool.apply(measure_once, task)
            if not implementation.is_slow:
                functions[name] = implementation.load()
    inputs = make_inputs(size, options.device)
    for key in PASSES:
        times = {name: [] for name in functions}
        for _ in range(options.repeats + 1):
            for name, function in functions.items():
                times[name].append(run(function, *inputs, key != "forward"))
        for name, seconds in times.items():
            rows[name][key]["seconds"] = median(seconds[1:])  # the first warms up
    return rows


def reference(hidden: Tensor, alphas: Tensor) -> list[Tensor]:
    """Embeddings of each row in float64, frame by frame, firing several times within a frame where it must."""
    rows = []
    for frames, weights in zip(hidden.double(), alphas.double().tolist(), strict=True):
        level, state, embeds = 0.0, torch.zeros_like(frames[0]), []
        for frame, weight in zip(frames, weights, strict=True):
            while level + weight >= 1.0:
                embeds.append(state + (1.0 - level) * frame)
                level, state, weight = 0.0, torch.zeros_like(frame), weight - (1.0 - level)
            level, state = level + weight, state + weight * frame
        rows.append(torch.stack(embeds))
    return rows


def error(function: Function, mean: float, device: str) -> str:
    """Largest absolute difference from the reference on a small case with weights of this mean."""
    hidden, alphas = (tensor.detach() for tensor in make_inputs((4, 200, 16), device, mean))
    rows = reference(hidden, alphas)
    expected, embeds = pad_sequence(rows, batch_first=True), function(hidden, alphas)
    if embeds.ndim == 2 and len(embeds) == sum(map(len, rows)):
        embeds = pad_sequence(embeds.split([len(row) for row in rows]), batch_first=True)
    return f"{(embeds - expected).abs().max():.0e}" if embeds.shape == expected.shape else "wrong number"


def least_traffic(size: tuple[int, int, int], device: str) -> list[str]:
    """Cells for reading inputs and writing outputs, and gradients, once: times at the speed of a copy, and bytes."""
    hidden, alphas = (tensor.detach() for tensor in make_inputs(size, device))
    target = torch.empty_like(hidden)
    copies = [run(lambda frames, _: target.copy_(frames), hidden, alphas, backward=False) for _ in range(9)]
    inputs, outputs = 4 * (hidden.numel() + alphas.numel()), 4 * size[2] * int(alphas.sum(1).floor().sum())
    traffic = (inputs + outputs, 3 * inputs + 2 * outputs)  # backward reads the inputs and writes their gradients
    times = [each * median(copies) / (8 * hidden.numel()) for each in traffic]
    return [f"{seconds * 1e3:.1f}" for seconds in times] + [f"{each / 2**20:.0f}" for each in traffic]


def report(size: tuple[int, int, int], rows: dict[str, dict], errors: dict[str, list[str]], device: str) -> str:
    """A Markdown table of one size, and whether the goal is met."""
    lines = [
        f"\n### {' × '.join(map(str, size))}\n",
        "| | forward, ms | forward+backward, ms | memory, MiB | with backward | error | if α > 1 |",
        "|---|" + "---:|" * 6,
        f"| {' | '.join(['reading and writing once, as fast as a copy', *least_traffic(size, device)])} | | |",
    ]
    ratios = {}
    for name, row in rows.items():
        cells = [row.get("note", ""), "", "", ""]
        if "note" not in row:
            ratios[name] = [row[key]["seconds"] / rows[OURS][key]["seconds"] for key in PASSES]
            cells = [f"{row[key]['seconds'] * 1e3:.1f} ({ratio:.1f}×)" for key, ratio in zip(PASSES, ratios[name])]
            cells += [f"{row[key]['memory'] / 2**20:.0f}" for key in PASSES]
        lines.append(f"| {' | '.join([name, *cells, *errors[name]])} |")
    packages = [name for name in ratios if IMPLEMENTATIONS[name].requirement]
    others = [name for name in ratios if name != OURS]
    for label, names in (("package", packages), ("of all", others)):
        ratio, name = min(((ratios[name][1], name) for name in names), default=(math.nan, "none"))
        verdict = "met" if ratio >= GOAL else "not met"
        lines.append(f"\nForward+backward, fastest {label}: {name}, {ratio:.1f}× (goal of {GOAL:.0f}×: {verdict}).")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the peers, without dependencies, in .peers")
    parser.add_argument("--sizes", choices=SIZES, default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow", action="store_true", help="run the slow loops at the long size, too")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    if options.install and not all(each.is_installed for each in IMPLEMENTATIONS.values()):
        PEERS.mkdir(exist_ok=True)
        (PEERS / ".gitignore").write_text("*\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(PEERS)]
        subprocess.run([*pip, TORCH_CIF, FUNASR], check=True)

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    setting = {"torch": torch.__version__, "device": device, "dtype": "float32", "repeats": options.repeats}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    errors = {name: ["", ""] for name in IMPLEMENTATIONS}
    for name, implementation in IMPLEMENTATIONS.items():
        if implementation.is_installed:
            errors[name] = [error(implementation.load(), mean, options.device) for mean in (0.1, 1.3)]
    results = []
    for size in SIZES[options.sizes]:
        results.append({"size": size, "rows": measure(size, options)})
        print(report(size, results[-1]["rows"], errors, options.device), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**setting, "errors": errors, "results": results}, indent=2) + "\n")


# Last, so that the peers shadow nothing; outside the guard, so that the processes that measure memory find them.
sys.path.append(str(PEERS))
if __name__ == "__main__":
    main()
