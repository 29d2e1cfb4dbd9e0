"""
Measures live transcription with a trained checkpoint: error rates, delays, cost over an hour, and streams at once.

    make demo
    python benchmarks/live.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl

The recordings of the dataset are joined with pauses to one stream, which arrives in blocks of 0.1 s. Its clock runs on while the
model computes, so that delays include the computation. Rows need the column `words` for delays. Each part is a command of its
own: `--parts accuracy hour silence streams`.
"""

import argparse
import json
import random
import time
from pathlib import Path

import jiwer
import numpy as np
import psutil
import torch

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.live.events import LiveEvent
from llm_asr.live.stream import LlmAsrStream, finish_together, push_together
from llm_asr.processing.audio import load_audio


PARTS = ("accuracy", "hour", "silence", "streams")
BLOCK_S = 0.1
PAUSE_S = (0.6, 2.0)


class Recording:
    """
    Recordings joined with pauses.

    Attributes:
        samples: The samples at the model's rate.
        texts: The transcript of each recording.
        words: Words of all transcripts.
        ends: When each word has ended, in seconds. NaN where it is not known.
    """

    def __init__(self, rows: list[dict], folder: Path, rate: int, seconds: float):
        rng, self.rate = np.random.default_rng(0), rate
        pieces: list[np.ndarray] = []
        self.texts: list[str] = []
        self.words: list[str] = []
        self.ends: list[float] = []
        self.alone: list[np.ndarray] = []
        num_samples = 0
        for row in rows:
            samples = load_audio(str(folder / row["audio"]), rate)
            if num_samples + len(samples) > seconds * rate:
                break
            start = num_samples / rate
            self.texts.append(row["text"])
            self.alone.append(samples)
            for unit in row.get("words") or [{"word": row["text"], "end": float("nan")}]:
                *inside, last = unit["word"].split()
                self.words += [*inside, last]
                self.ends += [float("nan")] * len(inside) + [start + unit["end"]]
            pieces += [samples, np.zeros(int(rng.uniform(*PAUSE_S) * rate), np.float32)]
            num_samples += sum(map(len, pieces[-2:]))
        self.samples = np.concatenate(pieces)

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def play(stream: LlmAsrStream, samples: np.ndarray, rate: int) -> list[tuple[float, LiveEvent]]:
    """Push the samples, and return the events with the time at which each is there, in seconds of a clock in real time."""
    events, clock, size = [], 0.0, int(BLOCK_S * rate)
    for start in range(0, len(samples) + size, size):
        block = samples[start : start + size]
        clock = max(clock, min(start + size, len(samples)) / rate)
        began = time.perf_counter()
        found = stream.push(block) if len(block) else stream.finish()
        clock += time.perf_counter() - began
        events += [(clock, event) for event in found]
        if not len(block):
            break
    return events


def measure_delays(recording: Recording, events: list[tuple[float, LiveEvent]]) -> np.ndarray:
    """Seconds from the end of a spoken word to its commitment, of the words that were recognised."""
    committed = [(word.text, clock) for clock, event in events for word in event.words]
    aligned = jiwer.process_words(" ".join(recording.words), " ".join(text for text, _ in committed))
    delays = []
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
                end = recording.ends[chunk.ref_start_idx + offset]
                delays.append(committed[chunk.hyp_start_idx + offset][1] - end)
    values = np.array(delays)
    return values[~np.isnan(values)]


def count_taken_back(events: list[tuple[float, LiveEvent]]) -> int:
    """Committed words that the text of their finished segment does not have at their place."""
    count, words = 0, []
    for _, event in events:
        words += [word.text for word in event.words]
        if event.segment is not None:
            final = [word.text for word in event.segment.words]
            if words:
                aligned = jiwer.process_words(" ".join(words), " ".join(final) or "-")
                count += aligned.substitutions + aligned.deletions
            words = []
    return count


def measure_accuracy(model, processor, recording: Recording, options) -> list[dict]:
    """Error rates and delays at each latency, beside the error rate of the recordings as files."""
    offline = []
    for start in range(0, len(recording.alone), 16):
        inputs = processor.apply_transcription_request(recording.alone[start : start + 16], identify_language=True)
        tokens = model.generate(**inputs, max_new_tokens=256)
        offline += processor.batch_decode(tokens)
    rows = [{"latency_s": None, "encoder": "files", "wer": 100 * jiwer.wer(recording.texts, offline)}]
    encoders = ["reencode"] + (["cached"] if model.config.encoder_attention == "chunked" else [])
    for encoder in encoders:
        for latency in options.latencies:
            began = time.process_time()
            events = play(
                LlmAsrStream(model, processor, latency_s=latency, encoder=encoder), recording.samples, recording.rate
            )
            cpu = (time.process_time() - began) / recording.seconds
            delays = measure_delays(recording, events)
            text = "".join(event.committed for _, event in events)
            rows.append(
                {
                    "latency_s": latency,
                    "encoder": encoder,
                    "wer": 100 * jiwer.wer(" ".join(recording.texts), text),
                    "mean_delay_s": float(delays.mean()) if len(delays) else None,
                    "p95_delay_s": float(np.quantile(delays, 0.95)) if len(delays) else None,
                    "words_of_finished_segments_that_differ": count_taken_back(events),
                    "cpu_s_per_s": cpu,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_hour(model, processor, recording: Recording, options) -> dict:
    """CPU time and memory of the first and the last minute of a stream that repeats one minute."""
    minute = recording.samples[: 60 * recording.rate]
    stream = LlmAsrStream(model, processor, encoder=options.encoder)
    size, minutes = int(BLOCK_S * recording.rate), []
    for _ in range(options.minutes):
        began = time.process_time()
        for start in range(0, len(minute), size):
            stream.push(minute[start : start + size])
        memory = psutil.Process().memory_info().rss
        minutes.append(
            {"cpu_s_per_s": (time.process_time() - began) * recording.rate / len(minute), "memory_mb": memory / 2**20}
        )
    stream.finish()
    # Before the second minute, caches of the program fill up.
    return {"minutes": options.minutes, "second": minutes[1], "last": minutes[-1], "all": minutes}


def measure_silence(model, processor, recording: Recording, options) -> list[dict]:
    """Text in silence and in noise."""
    rng = np.random.default_rng(0)
    rows = []
    for name, level in (("silence", 0.0), ("noise at -60 dB", 1e-3), ("noise at -40 dB", 1e-2)):
        stream = LlmAsrStream(model, processor, vad=options.vad, encoder=options.encoder)
        text, began = "", time.process_time()
        for _ in range(round(options.silent_minutes * 60)):
            block = level * rng.standard_normal(recording.rate).astype(np.float32)
            text += "".join(event.committed for event in stream.push(block))
        text += "".join(event.committed for event in stream.finish())
        seconds = 60 * options.silent_minutes
        cpu = (time.process_time() - began) / seconds
        rows.append({"sound": name, "minutes": options.silent_minutes, "text": text, "cpu_s_per_s": cpu})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_streams(model, processor, recording: Recording, options) -> list[dict]:
    """Seconds that several streams at once take for a second of audio."""
    rows, size = [], int(0.5 * recording.rate)
    seconds = min(30.0, recording.seconds)
    for number in options.streams:
        streams = [LlmAsrStream(model, processor, encoder=options.encoder) for _ in range(number)]
        shift = len(recording.samples) // number
        samples = [
            np.roll(recording.samples, -index * shift)[: int(seconds * recording.rate)] for index in range(number)
        ]
        began = time.perf_counter()
        for start in range(0, len(samples[0]), size):
            push_together(streams, [each[start : start + size] for each in samples])
        finish_together(streams)
        rows.append({"streams": number, "seconds_per_second": (time.perf_counter() - began) / seconds})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", type=Path, required=True, help="JSON Lines with `audio`, `text` and `words`.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=600.0, help="Length of the stream.")
    parser.add_argument("--latencies", nargs="+", type=float, default=[0.5, 1.0, 2.0])
    parser.add_argument("--minutes", type=int, default=60, help="Minutes of the long stream.")
    parser.add_argument("--silent-minutes", type=float, default=60.0)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--encoder", choices=("reencode", "cached"), default="reencode")
    parser.add_argument("--vad", choices=("energy", "silero"), default="energy", help="For silence and noise.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file for the figures. Parts that it has already are kept.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    processor = LlmAsrProcessor.from_pretrained(options.model)
    model = LlmAsrForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in options.dataset.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["text"]]
    random.Random(0).shuffle(rows)
    recording = Recording(rows, options.dataset.parent, processor.sampling_rate, options.seconds)
    print(
        f"torch {torch.__version__}, {options.threads} thread(s), {recording.seconds:.0f} s, {len(recording.words)} words"
    )
    measures = {
        "accuracy": measure_accuracy,
        "hour": measure_hour,
        "silence": measure_silence,
        "streams": measure_streams,
    }
    figures: dict = {}
    if options.output and options.output.is_file():
        figures = json.loads(options.output.read_text())
    for part in options.parts:
        with torch.no_grad():
            figures[part] = measures[part](model, processor, recording, options)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps({"threads": options.threads, **figures}, indent=1) + "\n")
    print_tables(figures)


def print_tables(figures: dict) -> None:
    """Print what was measured as tables."""
    if "accuracy" in figures:
        print(
            "\n| encoder | latency, s | WER, % | delay of a word, s: mean | 95 % | words that change | CPU s per s |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
        for row in figures["accuracy"]:
            cells = [row["encoder"], row["latency_s"] or "–", f"{row['wer']:.1f}"]
            cells += [
                "–" if row.get(name) is None else f"{row[name]:{style}}"
                for name, style in (
                    ("mean_delay_s", ".2f"),
                    ("p95_delay_s", ".2f"),
                    ("words_of_finished_segments_that_differ", "d"),
                    ("cpu_s_per_s", ".2f"),
                )
            ]
            print("| " + " | ".join(map(str, cells)) + " |")
    if "hour" in figures:
        second, last = figures["hour"]["second"], figures["hour"]["last"]
        for name, unit in (("cpu_s_per_s", "CPU s per s"), ("memory_mb", "MB")):
            change = 100 * (last[name] / second[name] - 1)
            print(f"\n{unit}: {second[name]:.3f} in minute 2, {last[name]:.3f} in the last ({change:+.1f} %).")
    for row in figures.get("silence", ()):
        print(
            f"\n{row['minutes']:g} minutes of {row['sound']}: {row['text']!r}, {row['cpu_s_per_s']:.3f} CPU s per s."
        )
    for row in figures.get("streams", ()):
        print(f"\n{row['streams']} streams: {row['seconds_per_second']:.2f} s per second of audio.")


if __name__ == "__main__":
    main()
