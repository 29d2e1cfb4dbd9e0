"""Loads a checkpoint with its own code, imports the package, and loads the checkpoint again."""

import json
import sys

import numpy as np
from transformers import pipeline


def transcribe(folder: str, recording: np.ndarray) -> dict:
    transcriber = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
    used = (transcriber, transcriber.model, transcriber.processor)
    modules = [type(one).__module__.partition(".")[0] for one in used]
    return {"modules": modules, "result": transcriber(recording, max_new_tokens=8)}


if __name__ == "__main__":
    (waveform,) = np.load(sys.argv[2]).values()
    before = transcribe(sys.argv[1], waveform)
    import llm_asr  # noqa: F401

    print(json.dumps([before, transcribe(sys.argv[1], waveform)]))
