"""Results of published checkpoints. The same calls run with the package, and without it in a clean environment."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline


def transcribe(name_or_path: str, recordings: list[np.ndarray], output: Path, **hub_kwargs) -> dict:
    """
    Transcribe with a checkpoint, and write `tensors.safetensors` and `texts.json` to the folder `output`.

    Returns:
        `dict[str, str]`: Modules of the used classes, by class.
    """
    output.mkdir()
    processor = AutoProcessor.from_pretrained(name_or_path, **hub_kwargs)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(name_or_path, **hub_kwargs)
    headless = AutoModel.from_pretrained(name_or_path, **hub_kwargs)
    inputs = processor.apply_transcription_request(recordings)
    with torch.no_grad():
        tensors = {
            "logits": model(**inputs).logits,
            "hidden_states": headless(**inputs).last_hidden_state,
            "tokens": model.generate(**inputs, max_new_tokens=8),
        }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "tensors.safetensors")
    transcriber = pipeline("automatic-speech-recognition", model=name_or_path, **hub_kwargs)
    texts = transcriber([*recordings, {"array": recordings[0], "sampling_rate": 16000}], max_new_tokens=8)
    texts.append(transcriber(np.concatenate(recordings), max_new_tokens=8, return_timestamps=True, chunk_length_s=2))
    (output / "texts.json").write_text(json.dumps(texts))
    used = (processor, model, headless, model.config, transcriber, transcriber.model, transcriber.processor)
    return {type(one).__name__: type(one).__module__ for one in used}


def refusal(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except (ImportError, ValueError) as error:
        return str(error)
    return "none"


def main(folders: list[str], waveforms: Path, output: Path) -> None:
    """Run without the package. `folders` are in one folder, and the last one is a Hub id with its revision."""
    torch.set_num_threads(1)
    recordings = list(np.load(waveforms).values())
    *local, (hub_id, revision) = [folder.split("@") for folder in folders]
    report: dict = {"found": [name for name in ("llm_asr", "soundfile", "soxr") if importlib.util.find_spec(name)]}
    report["untrusted"] = refusal(AutoConfig.from_pretrained, local[0][0], trust_remote_code=False)
    trusted = {"trust_remote_code": True}
    report["modules"] = [transcribe(folder, recordings, output / Path(folder).name, **trusted) for (folder,) in local]
    report["modules"].append(transcribe(hub_id, recordings, output / "hub", revision=revision, **trusted))

    transcriber = pipeline("automatic-speech-recognition", model=local[0][0], **trusted)
    report["file"] = refusal(transcriber, str(waveforms))
    report["rate"] = refusal(transcriber, {"array": recordings[0], "sampling_rate": 8000})
    for part in (transcriber.model, transcriber.processor):
        part.save_pretrained(output / "again")
    again = pipeline("automatic-speech-recognition", model=str(output / "again"), **trusted)
    again(recordings[0], generate_kwargs={"max_new_tokens": 8})
    report["again"] = type(again).__name__
    # There is no second question about trusted code.
    type(transcriber)(model=transcriber.model)
    (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]))
