import pytest
import torch
from speech_files import write_speech_dataset
from tiny_models import compose
from transformers import Trainer, TrainingArguments

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.expert_usage_callback import ExpertUsageCallback


def make_trainer(parts, folder, projector_type, **options):
    model, processor = compose(parts, projector_type, **options)
    dataset = load_asr_dataset(str(write_speech_dataset(folder / "speech")))
    arguments = TrainingArguments(
        str(folder),
        remove_unused_columns=False,
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=2,
        learning_rate=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    return Trainer(model, arguments, LlmAsrDataCollator(processor), dataset, eval_dataset=dataset)


def train_and_read(trainer):
    trainer.add_callback(ExpertUsageCallback(trainer))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "expert_entropy" in entry]


def test_balance_is_logged_with_the_loss(parts, tmp_path):
    trainer = make_trainer(parts, tmp_path, "moe")
    chosen = []
    trainer.model.model.projector.moe.balance.register_forward_pre_hook(
        lambda module, arguments: chosen.append(arguments[1])
    )
    logs = train_and_read(trainer)
    assert [entry["step"] for entry in logs] == [2, 4]
    # The `Trainer` still writes its own logs.
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [2, 4]
    for entry, batches in zip(logs, (chosen[:2], chosen[2:]), strict=True):
        counts = torch.bincount(torch.cat(batches).flatten(), minlength=4).double()
        shares = counts / counts.sum()
        assert entry["expert_min_share"] == pytest.approx(shares.min().item())
        assert entry["expert_max_violation"] == pytest.approx((counts.max() / counts.mean() - 1).item())
        assert entry["dead_experts"] == int((shares < 0.025).sum())
        used = shares[shares > 0]
        assert entry["expert_entropy"] == pytest.approx(
            -(used * used.log()).sum().item() / torch.tensor(4).log().item()
        )


def test_a_dead_expert_is_counted(parts, tmp_path):
    trainer = make_trainer(parts, tmp_path, "moe_cif", router_bias_update_rate=1e-9)
    trainer.model.model.projector.moe.balance.e_score_correction_bias[:2] = 10.0
    entry = train_and_read(trainer)[0]
    assert entry["dead_experts"] == 2
    assert entry["expert_min_share"] == 0
    assert entry["expert_max_violation"] == pytest.approx(1)


def test_only_training_steps_are_counted(parts, tmp_path):
    trainer = make_trainer(parts, tmp_path, "moe")
    callback = ExpertUsageCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.expert_load is None
    trainer.evaluate()
    assert callback.expert_load is None
    trainer.model.train()
    trainer.evaluate()
    assert callback.expert_load is None


def test_a_model_without_experts_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match="has no experts to watch"):
        ExpertUsageCallback(make_trainer(parts, tmp_path, "conv"))
