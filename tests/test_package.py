"""What importing the package does, and what of it ships inside checkpoints."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import compose
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, pipeline

import llm_asr


SOURCE = Path(llm_asr.__file__).parent
SHIPPED = sorted([*SOURCE.glob("modeling/*.py"), *SOURCE.glob("processing/*.py")])


def test_public_names():
    assert all(hasattr(llm_asr, name) for name in llm_asr.__all__)


def test_the_auto_classes_know_the_model():
    config = AutoConfig.for_model("llm_asr")
    assert type(config) is llm_asr.LlmAsrConfig
    assert AutoModel._model_mapping[type(config)] is llm_asr.LlmAsrModel
    assert AutoModelForSpeechSeq2Seq._model_mapping[type(config)] is llm_asr.LlmAsrForConditionalGeneration


def test_importing_is_silent_and_offline():
    code = (
        "import socket\n"
        "def refuse(*args): raise RuntimeError('network')\n"
        "socket.socket.connect = refuse\n"
        "import llm_asr"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_files_import_only_siblings_and_third_parties(file):
    """Transformers copies the siblings a checkpoint's code imports, flattened into one folder, and nothing else."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, ast.unparse(node)
            if node.level == 1:
                assert node.module is not None, ast.unparse(node)
                assert (file.parent / f"{node.module}.py").is_file(), ast.unparse(node)
            else:
                assert node.module.partition(".")[0] != "llm_asr", ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name.partition(".")[0] != "llm_asr" for alias in node.names)


def test_shipped_files_do_not_clash_when_flattened():
    names = [file.name for file in SHIPPED if file.name != "__init__.py"]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def checkpoint_with_code(parts, tmp_path_factory):
    """A model, its processor, and the folder where both lie with the source that they need."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "moe_cif")
    model.config.register_for_auto_class()
    model.register_for_auto_class("AutoModelForSpeechSeq2Seq")
    processor.register_for_auto_class()
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    finally:
        for registered in (model.config, model, processor):
            type(registered)._auto_class = None
    return model, processor, folder


@pytest.mark.slow
def test_a_checkpoint_with_its_code_needs_no_package(checkpoint_with_code, recordings, tmp_path):
    model, processor, folder = checkpoint_with_code
    np.save(tmp_path / "recording.npy", recordings[1])
    code = f"""
import sys
sys.modules["llm_asr"] = None
import json
import numpy as np
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
recording = np.load({str(tmp_path / "recording.npy")!r})
model = AutoModelForSpeechSeq2Seq.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
tokens = model.generate(**processor.apply_transcription_request(recording), max_new_tokens=8)
stock = pipeline("automatic-speech-recognition", model={str(folder)!r}, trust_remote_code=True)
transcribed = stock(recording, generate_kwargs={{"max_new_tokens": 8, "num_beams": 1}})
print(json.dumps([tokens.tolist(), transcribed["text"].strip(), type(processor).__module__, type(stock).__name__]))
"""
    # A cache of its own for the copied modules, so that no earlier copy serves.
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    expected = model.generate(**processor.apply_transcription_request(recordings[1]), max_new_tokens=8)
    tokens, text, processor_module, pipeline_name = json.loads(run.stdout.splitlines()[-1])
    assert tokens == expected.tolist()
    assert text == processor.decode(expected[0])
    assert processor_module.startswith("transformers_modules.")
    assert pipeline_name == "AutomaticSpeechRecognitionPipeline"


def test_who_has_the_package_need_not_trust_the_code_of_a_checkpoint(checkpoint_with_code, recordings):
    model, processor, folder = checkpoint_with_code
    transcriber = pipeline("automatic-speech-recognition", model=str(folder))
    assert type(transcriber) is llm_asr.LlmAsrPipeline
    assert type(transcriber.model) is llm_asr.LlmAsrForConditionalGeneration
    expected = model.generate(
        **processor.apply_transcription_request(recordings[1], identify_language=True), max_new_tokens=8
    )
    assert transcriber(recordings[1], max_new_tokens=8)["text"] == processor.decode(expected[0])
