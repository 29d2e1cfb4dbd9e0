"""Trains three steps on several processes: `torchrun train_balanced.py OUTPUT ACCUMULATION_STEPS BATCH_SIZE`."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments


TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "training")]


def main(output: str, accumulation_steps: int, batch_size: int) -> None:
    from speech_files import write_speech_dataset
    from tiny_models import compose, save_tiny_qwen2, save_tiny_whisper

    from llm_asr.datasets_asr import load_asr_dataset
    from llm_asr.training.data_collator import LlmAsrDataCollator

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"whisper": f"{folder}/whisper", "qwen2": f"{folder}/qwen2"}
        torch.manual_seed(0)
        save_tiny_whisper(parts["whisper"])
        save_tiny_qwen2(parts["qwen2"])
        model, processor = compose(
            parts, "moe_cif", router_aux_loss_coef=1.0, router_z_loss_coef=0.1, router_bias_update_rate=0.01
        )
        arguments = TrainingArguments(
            folder,
            remove_unused_columns=False,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation_steps,
            max_steps=3,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = load_asr_dataset(str(write_speech_dataset(Path(folder, "speech"))))
        collator = LlmAsrDataCollator(processor, language_dropout=0.0)
        trainer = Trainer(model, arguments, collator, dataset)
        trainer.train()
    if trainer.is_world_process_zero():
        state = {name: tensor.clone() for name, tensor in model.model.projector.state_dict().items()}
        torch.save(
            {
                "num_processes": arguments.world_size,
                "losses": torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]),
                "bias": state.pop("moe.balance.e_score_correction_bias"),
                "weights": state,
            },
            output,
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
