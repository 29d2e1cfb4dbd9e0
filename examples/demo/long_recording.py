"""
Joins the demo's held-out utterances to one long recording, transcribes it with the pipeline, and compares the error rate with
that of the single utterances.

    make demo
    python examples/demo/long_recording.py --model runs/demo-moe_cif --minutes 35
"""

import argparse
import json
import random
import time
from pathlib import Path

import jiwer
import numpy as np
import soundfile
from rendering import noise_like
from speech import SAMPLE_RATE
from transformers import pipeline

import llm_asr  # noqa: F401 - registers the model


PAUSE_SECONDS = (0.6, 2.5)
NOISE_DB = -65.0


def compose_long_recording(rows: list[dict], folder: Path, seconds: float, output: Path, seed: int = 0) -> list[dict]:
    """
    Write utterances with pauses to one file, and return their rows in order. The utterances repeat in rounds, each in another
    random order.
    """
    rng, shuffle = np.random.default_rng(seed), random.Random(seed)
    spoken: list[dict] = []
    num_samples = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(output, "w", SAMPLE_RATE, 1, subtype="PCM_16") as file:
        while num_samples < seconds * SAMPLE_RATE:
            for row in shuffle.sample(rows, len(rows)):
                samples, _ = soundfile.read(folder / row["audio"], dtype="float32")
                pause = np.zeros(int(rng.uniform(*PAUSE_SECONDS) * SAMPLE_RATE), dtype=np.float32)
                piece = np.concatenate([samples, pause])
                file.write(piece + np.float32(10 ** (NOISE_DB / 20)) * noise_like(len(piece), rng))
                spoken.append({**row, "start": num_samples / SAMPLE_RATE})
                num_samples += len(piece)
                if num_samples >= seconds * SAMPLE_RATE:
                    break
    return spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", type=Path, default=Path("data/demo/test.jsonl"))
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--recording", type=Path, default=Path("data/demo/long.flac"), help="File to write.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--vad", default="energy")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the transcript.")
    args = parser.parse_args()

    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["text"]]
    spoken = compose_long_recording(rows, args.dataset.parent, 60 * args.minutes, args.recording)
    duration = soundfile.info(args.recording).duration
    print(f"{args.recording}: {duration / 60:.1f} minutes, {len(spoken)} utterances")

    transcriber = pipeline("automatic-speech-recognition", model=args.model)
    start = time.perf_counter()
    result = transcriber(
        str(args.recording), batch_size=args.batch_size, return_timestamps=True, vad=args.vad, progress_bar=True
    )
    seconds = time.perf_counter() - start
    files = [str(args.dataset.parent / row["audio"]) for row in rows]
    outputs = transcriber((file for file in files), batch_size=args.batch_size)
    alone = {row["id"]: output["text"] for row, output in zip(rows, outputs, strict=True)}

    references = [row["text"] for row in spoken]
    wer_alone = 100 * jiwer.wer(references, [alone[row["id"]] for row in spoken])
    wer_joined = 100 * jiwer.wer(" ".join(references), result["text"])
    print(f"transcribed in {seconds:.0f} s, {duration / seconds:.1f} times faster than real time")
    print(f"WER of the utterances alone {wer_alone:.2f} %, in the long recording {wer_joined:.2f} %")
    for chunk in result["chunks"][:10]:
        start, end = chunk["timestamp"]
        print(f"{start:7.2f} – {end:6.2f}  {chunk['language']}: {chunk['text']}")
    if args.output is not None:
        figures = {"seconds": duration, "utterances": len(spoken), "vad": args.vad, "wall_seconds": seconds}
        figures |= {"wer_alone": wer_alone, "wer_joined": wer_joined, "result": result, "reference": references}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
