"""An experiment on tiny random models."""

import yaml
from speech_files import write_speech_dataset


ARMS = ("conv", "moe", "cif", "moe_cif", "conv_wide")
SEEDS = (0, 1)


def write_experiment(folder, parts, **changes):
    """Write an experiment with three steps per run. All parts except the speech encoder are trained."""
    train = write_speech_dataset(folder / "train", size=8)
    heldout = write_speech_dataset(folder / "heldout", size=4)
    content = {
        "name": "tiny",
        "results": str(folder / "results"),
        "runs": str(folder / "runs"),
        "train_dataset": str(train),
        "validation_dataset": str(heldout),
        "test_datasets": {"test": str(heldout), "seen": str(train)},
        "model": {"audio_model": parts["whisper"], "text_model": parts["qwen2"], "freeze_text": False},
        "feature_cache": str(folder / "features"),
        "projector": {
            "hidden_size": 16,
            "intermediate_size": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_hidden_size": 8,
        },
        "training": {
            "per_device_train_batch_size": 3,
            "max_steps": 3,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps",
            "save_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "max_new_tokens": 3,
        "learning_rates": [1e-3],
        "seeds": list(SEEDS),
        "arms": {
            **{arm: {"projector_type": arm} for arm in ARMS[:4]},
            "conv_wide": {"projector_type": "conv", "match_parameters": "moe_cif"},
        },
        "ablations": {
            "top 1": {"like": "moe_cif", "num_experts_per_tok": 1, "cif_target": "word", "against": ["conv"]}
        },
        "ablation_seeds": [1],
        "threads": 1,
        **changes,
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file
