"""Computes logits and generates with published checkpoints, in an interpreter without `llm_asr`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor


def main(waveforms: str, output: str, folders: list[str]) -> None:
    torch.set_num_threads(1)
    assert importlib.util.find_spec("llm_asr") is None
    recordings = list(np.load(waveforms).values())
    logits = {}
    for folder in folders:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
        request = processor.apply_transcription_request(recordings)
        assert model.generate(**request, min_new_tokens=6, max_new_tokens=6).shape == (len(recordings), 6)
        with torch.no_grad():
            logits[Path(folder).name] = model(**request).logits[:, -1].numpy()
    np.savez(output, **logits)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
