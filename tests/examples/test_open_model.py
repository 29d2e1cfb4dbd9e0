"""The model that the repository has for `make try`: its files fit together, and its parts are those of the scripts."""

import json

import torch
from open_backbones import MODEL
from open_corpus.packages import SOURCES
from safetensors.torch import load_file

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.commands.trim_vocabulary import read_old_ids
from llm_asr.modeling.checkpoint_safety import check_checksums, read_checksums
from llm_asr.publishing.checkpoint_forms import find_form


def test_the_checkpoint_is_slim_whole_and_small():
    assert find_form(str(MODEL)) == "slim"
    check_checksums(MODEL, {name: str(MODEL / name) for name in read_checksums(MODEL / "SHA256SUMS")})
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 20e6
    config = LlmAsrConfig.from_pretrained(MODEL)
    assert config.backbones is not None
    for part, reference in config.backbones.items():
        assert reference["name_or_path"] == f"data/try/{part}"
        assert set(reference["sha256"]) >= {"config.json", "model.safetensors"}
        assert (MODEL / "backbones" / part / "config.json").is_file()


def test_the_processor_and_the_weights_fit_the_configuration():
    config = LlmAsrConfig.from_pretrained(MODEL)
    processor = LlmAsrProcessor.from_pretrained(MODEL)
    processor.check_model(config)
    old_ids = read_old_ids(MODEL / "trimmed_vocabulary.json")
    text_config = json.loads((MODEL / "backbones" / "language_model" / "config.json").read_text(encoding="utf-8"))
    assert len(old_ids) == text_config["vocab_size"]
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in LlmAsrForConditionalGeneration(config).state_dict().items()}
    weights = load_file(MODEL / "model.safetensors")
    trained = {name: each for name, each in weights.items() if ":" not in name}
    assert {name: each.shape for name, each in trained.items()}.items() <= shapes.items()
    assert any(name.startswith("model.projector.moe") for name in trained)
    assert all(each.isfinite().all() for each in trained.values() if each.is_floating_point())


def test_sentences_are_in_packages_that_are_fetched():
    rows = [json.loads(line) for line in (MODEL / "sentences.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["language"] for row in rows} == {"en", "cs", "nl"}
    assert all(row["source"] in SOURCES and row["id"].startswith(row["source"]) for row in rows)
