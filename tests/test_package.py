"""What importing the package does, and what of it ships inside checkpoints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import compose
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

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


@pytest.mark.slow
def test_a_checkpoint_with_its_code_needs_no_package(parts, recordings, tmp_path):
    model, processor = compose(parts, "moe_cif")
    model.config.register_for_auto_class()
    model.register_for_auto_class("AutoModelForSpeechSeq2Seq")
    processor.register_for_auto_class()
    try:
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    finally:
        for registered in (model.config, model, processor):
            type(registered)._auto_class = None
    inputs = processor.apply_transcription_request(recordings)
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    code = f"""
import sys
sys.modules["llm_asr"] = None
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
model = AutoModelForSpeechSeq2Seq.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
inputs = torch.load({str(tmp_path / "inputs.pt")!r}, weights_only=True)
print("tokens", model.generate(**inputs, max_new_tokens=8).tolist(), type(processor).__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = model.generate(**inputs, max_new_tokens=8).tolist()
    assert f"tokens {expected} LlmAsrProcessor" in run.stdout
