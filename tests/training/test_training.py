"""Training end to end with all `Trainer` classes: compose, train, save, reload, transcribe."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from speech_files import write_speech_dataset
from tiny_models import PROJECTOR_KWARGS, compose
from transformers import (
    AutoModelForSpeechSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
)

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.processing.languages import LANGUAGE_CODE_TO_NAME, find_language
from llm_asr.training import program as train
from llm_asr.training.arguments import LlmAsrTrainingArguments, ModelArguments
from llm_asr.training.compiled_encoder import compile_audio_tower
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.data_mixing import DatasetSpec
from llm_asr.training.lora import add_lora
from llm_asr.training.trainer import LlmAsrTrainer


# The first four types, and each other way to reduce frames.
PROJECTOR_TYPES = ("conv", "moe", "cif", "moe_cif", "stack", "moe_qformer", "ctc")


@pytest.fixture(scope="module")
def dataset_file(tmp_path_factory):
    return write_speech_dataset(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def dataset(dataset_file):
    return load_asr_dataset(str(dataset_file))


def training_options(folder, **options):
    return {
        "output_dir": str(folder),
        "remove_unused_columns": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }


@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_the_plain_trainer_updates_only_parameters_that_are_not_frozen(parts, dataset, tmp_path, projector_type):
    model, processor = compose(parts, projector_type)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**training_options(tmp_path)),
        data_collator=LlmAsrDataCollator(processor),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("model.projector"), name


def test_the_seq2seq_trainer_transcribes_to_evaluate(parts, dataset, tmp_path):
    model, processor = compose(parts, "moe_cif")
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**training_options(tmp_path, predict_with_generate=True)),
        data_collator=LlmAsrDataCollator(processor),
        eval_dataset=dataset,
        processing_class=processor,
        compute_metrics=ErrorRates(processor, dataset["language"]),
    )
    metrics = trainer.evaluate(max_new_tokens=8)
    assert {"eval_loss", "eval_wer", "eval_cer", "eval_wer_en", "eval_cer_es"} <= set(metrics)


def recipe(parts, dataset_file, output_dir, **options) -> str:
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / "recipe.json"
    content = {
        "audio_model": parts["whisper"],
        "text_model": parts["qwen2"],
        "projector_type": "moe_cif",
        "projector": PROJECTOR_KWARGS,
        "freeze_text": False,
        "train_dataset": str(dataset_file),
        "eval_dataset": str(dataset_file),
        "do_train": True,
        "do_eval": True,
        "generation_max_length": 16,
        **training_options(output_dir),
        **options,
    }
    # The class of the recipe sets this option.
    del content["remove_unused_columns"]
    file.write_text(json.dumps(content))
    return str(file)


def test_flags_override_single_options_of_a_recipe(parts, tmp_path):
    file = recipe(parts, "nowhere.jsonl", tmp_path, projector={"hidden_size": 32, "draft_head": True})
    flags = ["--projector", '{"draft_head": false, "intermediate_size": 48}', "--projector_type", "conv"]
    model_args, _, training_args = train.parse_arguments([file, *flags])
    assert model_args.projector == {"hidden_size": 32, "draft_head": False, "intermediate_size": 48}
    assert (model_args.projector_type, training_args.max_steps) == ("conv", 4)
    assert train.parse_arguments([file])[0].projector == {"hidden_size": 32, "draft_head": True}


@pytest.mark.slow
@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_train_save_reload_transcribe(parts, dataset_file, dataset, tmp_path, projector_type):
    """Trains until the model has memorised its four recordings."""
    options = {"max_steps": 150, "projector_type": projector_type, "feature_cache": str(tmp_path / "cache")}
    # Four recordings are too few to learn all forms of prompts.
    options["language_dropout"] = 0.0
    train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert metrics["eval_wer"] == 0
    assert metrics["eval_wer_en"] == metrics["eval_wer_es"] == 0
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = [log for log in history if "lm_loss" in log]
    assert logged[-1]["lm_loss"] < 0.1 < logged[0]["lm_loss"]
    assert ("router_aux_loss" in logged[0]) == ("moe" in projector_type)
    assert ("quantity_loss" in logged[0]) == ("cif" in projector_type)
    assert ("ctc_loss" in logged[0]) == ("ctc_skipped" in logged[0]) == ("ctc" in projector_type)
    if "ctc" in projector_type:
        assert logged[-1]["ctc_loss"] < 0.5 * logged[0]["ctc_loss"]
        assert logged[-1]["ctc_skipped"] == 0

    transcriber = pipeline("automatic-speech-recognition", model=str(tmp_path / "run"))
    for row in dataset.select(range(4)):
        assert transcriber(row["audio"], language=row["language"])["text"] == row["text"]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(parts, dataset_file, tmp_path):
    train.main([recipe(parts, dataset_file, tmp_path / "whole", max_steps=6)])
    halves = recipe(parts, dataset_file, tmp_path / "halves", max_steps=6, save_steps=3)
    train.main([halves])
    # Simulate a run that was killed after its first checkpoint.
    shutil.rmtree(tmp_path / "halves" / "checkpoint-6")
    train.main([halves, "--resume_from_checkpoint", "true"])
    expected = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "whole").state_dict()
    resumed = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "halves").state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_lora_is_saved_reloaded_and_merged(parts, dataset_file, dataset, tmp_path):
    train.main([recipe(parts, dataset_file, tmp_path, lora_rank=4, freeze_text=True), "--seed", "3"])
    merged = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    base, processor = compose(parts, "moe_cif")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = LlmAsrDataCollator(processor)(dataset.to_list())
    with torch.no_grad():
        expected, reloaded = merged(**batch), adapted(**batch)
    assert torch.allclose(reloaded.logits, expected.logits, atol=1e-4)
    weights = "model.language_model.layers.0.self_attn.q_proj.weight"
    fresh, _ = compose(parts, "moe_cif")
    assert not torch.equal(merged.state_dict()[weights], fresh.state_dict()[weights])


def test_lora_trains_only_the_projector_and_the_low_rank_updates(parts):
    model, _ = compose(parts, "cif")
    adapted = add_lora(model, rank=2)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trainable)
    assert all("lora_" in name or ".projector.modules_to_save." in name for name in trainable)
    assert not any("audio_tower" in name for name in trainable)
    with pytest.raises(ValueError, match="`rank` must be positive"):
        add_lora(model, rank=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projektor_type": "conv"}, r"unknown options \['projektor_type'\]"),
        ({"projector": {"num_expert": 4}}, r"no option named \['num_expert'\]"),
        ({"train_dataset": "nowhere.jsonl"}, "'nowhere.jsonl' does not exist"),
        ({"train_dataset": None}, "Pass `train_dataset` or `train_datasets` to train"),
    ],
)
def test_a_bad_recipe_is_refused_before_training(parts, dataset_file, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train.main([recipe(parts, dataset_file, tmp_path, **options)])


def test_a_model_is_either_composed_or_loaded():
    for arguments in ({}, {"audio_model": "a"}, {"model": "m", "audio_model": "a", "text_model": "t"}):
        with pytest.raises(ValueError, match="Pass either `model`, or both"):
            ModelArguments(**arguments)


def test_parts_have_their_own_learning_rates(parts, tmp_path):
    model, processor = compose(parts, "cif", freeze_audio=False, freeze_text=False)
    arguments = LlmAsrTrainingArguments(
        str(tmp_path), learning_rate=1e-3, audio_learning_rate=1e-5, text_learning_rate=1e-4, weight_decay=0.1
    )
    trainer = LlmAsrTrainer(model, arguments, LlmAsrDataCollator(processor))
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, group in found.items():
        rate = 1e-5 if "audio_tower" in name else 1e-4 if "language_model" in name or "lm_head" in name else 1e-3
        assert group["lr"] == rate, name
        assert group["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name
    assert trainer.create_optimizer() is optimizer

    plain = LlmAsrTrainer(model, LlmAsrTrainingArguments(str(tmp_path)), LlmAsrDataCollator(processor))
    assert len(plain.create_optimizer().param_groups) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_of_datasets_trains(parts, dataset_file, tmp_path, capsys, streaming):
    spec = {"dataset": str(dataset_file), "streaming": streaming}
    if streaming:
        specs = [{**spec, "language": code, "num_rows": 4} for code in ("en", "es")]
    else:
        specs = [{**spec, "language_column": "language"}]
    options = {
        "train_dataset": None,
        "train_datasets": specs,
        "temperature": 2.0,
        "max_duration": 30.0,
        "eval_dataset": None,
        "eval_datasets": [{"dataset": str(dataset_file), "language_column": "language"}],
        "max_steps": 3,
    }
    train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    assert "rows kept, 0 rejected" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert {"eval_wer", "eval_wer_en", "eval_cer_es"} <= set(metrics)
    AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run")


def test_datasets_are_described_in_one_way(parts, dataset_file, tmp_path):
    with pytest.raises(ValueError, match="either `train_dataset` or `train_datasets`"):
        train.main([recipe(parts, dataset_file, tmp_path / "a", train_datasets=[{"dataset": str(dataset_file)}])])
    options = {"train_dataset": None, "train_datasets": [{"dataset": str(dataset_file)}], "text_column": "sentence"}
    with pytest.raises(ValueError, match="`text_column` and `language_column` apply to `train_dataset`"):
        train.main([recipe(parts, dataset_file, tmp_path / "b", **options)])


def test_a_single_checkpoint_is_refused_before_recordings_are_encoded(parts, dataset_file, tmp_path):
    options = {"save_total_limit": 1, "feature_cache": str(tmp_path / "features")}
    with pytest.raises(ValueError, match="`save_total_limit` must be at least 2"):
        train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    assert not (tmp_path / "features").exists()


RECIPES = sorted((Path(__file__).parents[2] / "examples/recipes").glob("*/[0-9]*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_recipes_have_only_known_options(file):
    # Without a GPU, bfloat16 training is not available.
    model_args, data_args, training_args = train.parse_arguments([str(file), "--bf16", "false"])
    if data_args.train_dataset is None:
        specs = [DatasetSpec.from_dict(spec) for spec in data_args.train_datasets]
        assert len({spec.source for spec in specs}) == len(specs)
    assert training_args.save_total_limit >= 2
    if model_args.model is not None:
        earlier = [train.parse_arguments([str(other), "--bf16", "false"])[2].output_dir for other in RECIPES]
        assert model_args.model in earlier


def test_stages_share_their_data():
    by_folder = {}
    for file in RECIPES:
        _, data_args, _ = train.parse_arguments([str(file), "--bf16", "false"])
        by_folder.setdefault(file.parent.name, []).append(data_args.train_datasets)
        assert "train_datasets" not in file.read_text()
    assert all(all(specs == stages[0] for specs in stages) for stages in by_folder.values())
    # The recipes have all public corpora of the paper with their languages.
    languages = {spec["language"] for spec in by_folder["paper"][0]}
    assert {"th", "id", "vi"} <= languages
    processor_languages = {find_language(language, LANGUAGE_CODE_TO_NAME) for language in languages}
    assert None not in processor_languages


def test_a_recipe_overrides_the_recipes_that_it_includes(tmp_path):
    (tmp_path / "base.yaml").write_text("audio_model: a\ntext_model: b\noutput_dir: one\nlearning_rate: 0.1\n")
    (tmp_path / "recipe.yaml").write_text("include: base.yaml\noutput_dir: two\n")
    model_args, _, training_args = train.parse_arguments([str(tmp_path / "recipe.yaml"), "--learning_rate", "0.3"])
    assert (model_args.audio_model, training_args.output_dir, training_args.learning_rate) == ("a", "two", 0.3)
    (tmp_path / "recipe.yaml").write_text("- a list\n")
    with pytest.raises(ValueError, match="recipe.yaml must hold options with their values"):
        train.parse_arguments([str(tmp_path / "recipe.yaml")])


def test_a_compiled_encoder_gives_the_same_loss(parts, dataset):
    model, processor = compose(parts, "conv")
    batch = LlmAsrDataCollator(processor)(dataset.to_list())
    names = list(model.state_dict())
    expected = model(**batch).loss
    compile_audio_tower(model, backend="aot_eager")
    assert torch.allclose(model(**batch).loss, expected)
    assert list(model.state_dict()) == names
    model.model.audio_tower.requires_grad_(True)
    with pytest.raises(ValueError, match="freeze_audio_tower"):
        compile_audio_tower(model)


@pytest.mark.slow
def test_a_recipe_sets_batches_by_duration_and_augmentation(parts, dataset_file, tmp_path):
    options = {"max_batch_seconds": 1.3, "speed_perturbation": [0.9, 1.1], "spec_augment": True, "max_steps": 6}
    train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    # Eight recordings give five such batches.
    assert history["epoch"] == pytest.approx(1.2)
    assert (tmp_path / "run" / "eval_results.json").is_file()


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_labels_are_smoothed(parts, dataset, tmp_path, projector_type):
    """The other parts of the loss do not change."""
    model, processor = compose(parts, projector_type)
    collator = LlmAsrDataCollator(processor)
    batch = collator([dataset[row] for row in range(4)])
    outputs = model(**batch, lm_loss_smoothing=0.1)
    log_probabilities = outputs.logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    is_target = labels != -100
    hits = log_probabilities[is_target].gather(-1, labels[is_target][:, None])
    expected = -(0.9 * hits.mean() + 0.1 * log_probabilities[is_target].mean())
    torch.testing.assert_close(outputs.lm_loss, expected)

    options = training_options(tmp_path, label_smoothing_factor=0.1, logging_steps=1, max_steps=2)
    arguments = LlmAsrTrainingArguments(**options)
    trainer = LlmAsrTrainer(model, arguments, collator, dataset, dataset)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "lm_loss" in entry)
    assert ("quantity_loss" in entry) == ("router_z_loss" in entry) == (projector_type == "moe_cif")
    plain = Trainer(model, TrainingArguments(**options), collator, dataset)
    with pytest.raises(ValueError, match="`label_smoothing_factor` .*; train with `LlmAsrTrainer`"):
        plain.train()


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_logits_predict_the_next_label(parts, dataset, tmp_path, projector_type):
    """As in all causal language models, the logits at a position predict the next label."""
    model, processor = compose(parts, projector_type)
    seen = []

    def compute_metrics(prediction):
        logits, labels = prediction.predictions, prediction.label_ids
        seen.append((logits.shape, labels.shape))
        is_target = labels[:, 1:] != -100
        return {"accuracy": float((logits[:, :-1].argmax(-1) == labels[:, 1:])[is_target].mean())}

    trainer = Trainer(
        model,
        TrainingArguments(**training_options(tmp_path, max_steps=40, per_device_eval_batch_size=8)),
        LlmAsrDataCollator(processor),
        dataset,
        dataset,
        compute_metrics=compute_metrics,
    )
    model.model.language_model.requires_grad_(True)
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > max(before, 0.5)
    assert all(logits[:2] == labels for logits, labels in seen)


def test_a_checkpoint_of_the_trainer_loads_as_a_pipeline(parts, dataset, tmp_path):
    """The quick start of the README does this."""
    model, processor = compose(parts, "moe_cif")
    options = training_options(tmp_path, save_steps=2, max_steps=2)
    Trainer(
        model, TrainingArguments(**options), LlmAsrDataCollator(processor), dataset, processing_class=processor
    ).train()
    transcriber = pipeline("automatic-speech-recognition", model=str(tmp_path / "checkpoint-2"))
    assert isinstance(transcriber(dataset[0]["audio"], max_new_tokens=4)["text"], str)
