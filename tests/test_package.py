"""Effects of importing the package."""

import subprocess
import sys

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

import llm_asr


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
