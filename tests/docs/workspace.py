"""Small versions of the files and Hub repositories that readers of the documentation have, under the names in the pages."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from hub_server import HubServer
from huggingface_hub import HfApi
from snippets import ROOT
from speech_files import write_speech_dataset
from tiny_models import PROJECTOR_KWARGS
from tiny_speech_llms import save_qwen2_audio

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.training.projector_replacement import replace_projector


AUDIO_ID, TEXT_ID = "openai/whisper-base", "Qwen/Qwen2.5-0.5B-Instruct"
SPEECH_LLM_ID = "Qwen/Qwen2-Audio-7B-Instruct"
NUM_RECORDINGS = 20


def upload_parts(hub: HubServer, parts: dict[str, str]) -> None:
    """Upload tiny models under the ids of real ones. Then make the user `me` the reader."""
    api = HfApi()
    with tempfile.TemporaryDirectory() as speech_llm:
        save_qwen2_audio(speech_llm)
        for repo_id, folder in ((AUDIO_ID, parts["whisper"]), (TEXT_ID, parts["qwen2"]), (SPEECH_LLM_ID, speech_llm)):
            hub.user = repo_id.partition("/")[0]
            api.create_repo(repo_id)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
    hub.user = "me"


def make_workspace(folder: Path, parts: dict[str, str]) -> None:
    """
    Write recordings, datasets, a trained checkpoint (`moe_cif` with a draft head) as `my-model` and under the names in the
    README, folders of the frozen parts, and `examples`.
    """
    rows = write_recordings(folder)
    for name, part in (("train", rows[4:]), ("validation", rows[2:4]), ("test", rows[:2])):
        lines = [json.dumps({**row, "translation": row["text"], "target_language": "en"}) for row in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    train_checkpoint(folder)
    train_in_chunks(folder / "my-model", folder / "my-chunked-model")
    give_ctc_head(folder / "my-model", folder / "my-ctc-model")
    for name in ("runs/demo-moe_cif", "runs/mine"):
        shutil.copytree(folder / "my-model", folder / name)
    for name, part in (("whisper-base", "whisper"), ("qwen2.5-0.5b-instruct", "qwen2")):
        shutil.copytree(parts[part], folder / "models" / name)
    (folder / "examples").symlink_to(ROOT / "examples")


def write_recordings(folder: Path) -> list[dict]:
    """Write recordings to `recordings/` with a table of transcripts, and some files with special names. Return the rows."""
    rows = [
        json.loads(line)
        for line in write_speech_dataset(folder / "recordings", NUM_RECORDINGS).read_text().splitlines()
    ]
    (folder / "recordings/dataset.jsonl").unlink()
    table = "".join(f"{row['audio']}\t{row['text']}\n" for row in rows)
    (folder / "recordings/transcripts.tsv").write_text(table)
    (folder / "talks").mkdir()
    waveform, rate = soundfile.read(folder / "recordings/0.wav")
    for name in ("recording.wav", "one.wav", "two.mp3", "talks/one.wav", "talks/two.flac"):
        soundfile.write(folder / name, waveform, rate)
    (folder / "names.txt").write_text("Iñigo\nQwen\n")
    (folder / "an_hour.txt").write_text("one two three one two three\n")
    # This recording is longer than the window of the tiny encoder.
    soundfile.write(folder / "an_hour.mp3", np.tile(np.concatenate([waveform, np.zeros(rate)]), 3), rate)
    return [{**row, "audio": f"recordings/{row['audio']}"} for row in rows]


def train_checkpoint(folder: Path) -> None:
    recipe = {
        "audio_model": AUDIO_ID,
        "text_model": TEXT_ID,
        "projector_type": "moe_cif",
        "projector": {**PROJECTOR_KWARGS, "draft_head": True},
        "train_dataset": str(folder / "train.jsonl"),
        "output_dir": str(folder / "my-model"),
        "do_train": True,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    file = folder / "my-model.json"
    file.write_text(json.dumps(recipe))
    assert main(["train", str(file)]) == 0
    file.unlink()


def train_in_chunks(trained: Path, folder: Path) -> None:
    """Save a checkpoint as if its encoder had been trained in chunks."""
    model = LlmAsrForConditionalGeneration.from_pretrained(trained)
    model.config.set_encoder_attention("chunked", encoder_training_chunks_s=[0.5, 1.0])
    model.save_pretrained(folder)
    processor = LlmAsrProcessor.from_pretrained(trained)
    processor.log_mel_maximum = "running"
    processor.save_pretrained(folder)


def give_ctc_head(trained: Path, folder: Path) -> None:
    """Save a checkpoint as if its projector had a CTC head."""
    model = LlmAsrForConditionalGeneration.from_pretrained(trained)
    replace_projector(model, "ctc")
    model.save_pretrained(folder)
    LlmAsrProcessor.from_pretrained(trained).save_pretrained(folder)
