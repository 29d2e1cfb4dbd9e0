"""Loads checkpoints from the Hub in the environment's settings, and prints their results for a recording."""

import json
import sys

import numpy as np
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

import llm_asr  # noqa: F401


def transcribe(repo_id: str, revision: str, recording: np.ndarray) -> dict:
    processor = AutoProcessor.from_pretrained(repo_id, revision=revision)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(repo_id, revision=revision)
    inputs = processor.apply_transcription_request([recording])
    transcriber = pipeline("automatic-speech-recognition", model=repo_id, revision=revision)
    return {
        "tokens": model.generate(**inputs, max_new_tokens=8).tolist(),
        "text": transcriber(recording, max_new_tokens=8)["text"],
    }


if __name__ == "__main__":
    (waveform,) = np.load(sys.argv[1]).values()
    places = [argument.split("@") for argument in sys.argv[2:]]
    print(json.dumps([transcribe(repo_id, revision, waveform) for repo_id, revision in places]))
