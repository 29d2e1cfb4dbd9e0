"""
Compares the server under load with `pipeline()` in one process, on the same recordings.

    make demo
    python benchmarks/serve_load.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl

Each way runs in a new process and is warmed up before it is measured. Clients send one recording after the other until all
are transcribed or the time is over. Latency is the time from a client's request to its answer. `pipeline()` returns after all
recordings are transcribed. Memory is the peak of the proportional set size, summed over the program and its children, so it
includes the weights of each process. The number of transcripts that differ from those of the pipeline with `batch_size=1` is
printed. If other programs use the processors, compare the CPU time.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
import psutil
from transformers import pipeline

import llm_asr  # noqa: F401
from llm_asr.datasets_asr import load_asr_dataset


START_SECONDS = 300.0
WARM_UP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--recordings", type=int, default=128, help="Number of recordings, spread over the dataset.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="Batch sizes of pipeline().")
    parser.add_argument("--engines", nargs="*", default=["vllm", "transformers"])
    parser.add_argument("--seconds", type=float, default=120.0, help="Longest time for one number of clients.")
    parser.add_argument("--serve-args", default="", help="Further arguments of `llm-asr serve`, separated by spaces.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    args = parser.parse_args()

    rows = load_asr_dataset(args.dataset, split="test").to_list()
    rows = [rows[index] for index in np.linspace(0, len(rows) - 1, min(args.recordings, len(rows))).astype(int)]
    files = [row["audio"] for row in rows]
    expected, table = None, []
    for batch_size in args.batch_sizes:
        texts, figures = measure_pipeline(args.model, files, batch_size)
        expected = texts if expected is None else expected
        table.append({"way": f"pipeline(batch_size={batch_size})", **figures, **compare(texts, expected)})
    for engine in args.engines:
        options = [
            *(["--engine-args", '{"enforce_eager": true}'] if engine == "vllm" else []),
            *args.serve_args.split(),
        ]
        with start_server(args.model, engine, options) as (server, address):
            asyncio.run(send_all(address, files[:WARM_UP], WARM_UP, args.seconds))
            for clients in args.clients:
                texts, figures = measure_server(server, address, files, clients, args.seconds)
                table.append({"way": f"{engine}, {clients} client(s)", **figures, **compare(texts, expected)})

    print(f"{len(files)} recordings, {multiprocessing.cpu_count()} cores\n")
    print("| | requests/s | p50, ms | p95, ms | CPU, ms a request | peak memory, MiB | done | different |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in table:
        p50, p95 = (f"{row[name]:.0f}" if name in row else "" for name in ("p50_ms", "p95_ms"))
        print(
            f"| {row['way']} | {row['per_second']:.1f} | {p50} | {p95} | {1000 * row['cpu_seconds'] / row['done']:.0f} | "
            f"{row['peak_mib']:.0f} | {row['done']} | {row['different']} |"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(table, indent=2) + "\n")


def compare(texts: list[str | None], expected: list[str]) -> dict[str, int]:
    answered = [(text, right) for text, right in zip(texts, expected, strict=True) if text is not None]
    return {"done": len(answered), "different": sum(text != right for text, right in answered)}


class Usage:
    """Measures peak memory and CPU time of a process and its children while the block runs."""

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.peak = 0
        self.cpu_seconds = 0.0
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Usage":
        self.cpu_seconds = -self._cpu_seconds()
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        self._watcher.join()
        self.cpu_seconds += self._cpu_seconds()

    @property
    def figures(self) -> dict[str, float]:
        return {"peak_mib": self.peak / 2**20, "cpu_seconds": self.cpu_seconds}

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._tree())

    def _watch(self) -> None:
        while not self._is_over.wait(0.25):
            used = 0
            for process in self._tree():
                try:
                    used += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, used)


def measure_pipeline(model: str, files: list[str], batch_size: int) -> tuple[list[str], dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_pipeline, args=(theirs, model, files, batch_size))
    process.start()
    ours.recv()
    with Usage(process.pid) as usage:
        start = time.perf_counter()
        ours.send("go")
        texts = ours.recv()
        seconds = time.perf_counter() - start
    ours.send("enough")
    process.join()
    return texts, {"per_second": len(files) / seconds, **usage.figures}


def run_pipeline(connection: Connection, model: str, files: list[str], batch_size: int) -> None:
    """Run in a separate process: warm up, wait for a message, transcribe, wait for a message."""
    transcriber = pipeline("automatic-speech-recognition", model=model)
    transcriber(files[:WARM_UP], batch_size=batch_size)
    connection.send("warm")
    connection.recv()
    connection.send([result["text"] for result in transcriber(files, batch_size=batch_size)])
    connection.recv()


@contextmanager
def start_server(model: str, engine: str, options: list[str]) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llm_asr", "serve", model, "--engine", engine, "--port", str(port), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`{' '.join(command)}` did not start.")
            try:
                httpx.get(address + "/health").raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.5)
        yield server, address
    finally:
        server.terminate()
        server.wait(60)


def measure_server(
    server: subprocess.Popen, address: str, files: list[str], clients: int, seconds: float
) -> tuple[list[str | None], dict[str, float]]:
    with Usage(server.pid) as usage:
        start = time.perf_counter()
        answers = asyncio.run(send_all(address, files, clients, seconds))
        taken = time.perf_counter() - start
    latencies = [1000 * latency for _, latency in answers.values()]
    p50, p95 = np.percentile(latencies, (50, 95))
    figures = {"per_second": len(answers) / taken, "p50_ms": p50, "p95_ms": p95, **usage.figures}
    return [answers[index][0] if index in answers else None for index in range(len(files))], figures


async def send_all(address: str, files: list[str], clients: int, seconds: float) -> dict[int, tuple[str, float]]:
    """Text and latency in seconds, by the number of the file. Files that were not sent in time are missing."""
    answers: dict[int, tuple[str, float]] = {}
    todo = iter(enumerate(files))
    deadline = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=seconds, limits=limits) as http:

        async def work() -> None:
            for index, file in todo:
                if time.perf_counter() > deadline:
                    return
                start = time.perf_counter()
                response = await http.post(
                    "/v1/audio/transcriptions", files={"file": (Path(file).name, Path(file).read_bytes())}
                )
                response.raise_for_status()
                answers[index] = response.json()["text"], time.perf_counter() - start

        await asyncio.gather(*(work() for _ in range(clients)))
    return answers


if __name__ == "__main__":
    main()
