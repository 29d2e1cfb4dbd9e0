"""Balance statistics count each batch once, even if several processes share it."""

import pytest
import torch
import torch.distributed as dist
from speech_files import write_speech_dataset
from test_training import training_options
from tiny_models import compose
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import Trainer, TrainingArguments

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.modeling.expert_balance import ExpertBalance
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.balance_group import set_balance_group
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.trainer import LlmAsrTrainer


def one_step(balance):
    """Compute a step with two batches of 6 frames and 4 labels, and return its losses and the bias after it."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(2):
        router_logits = torch.randn(6, 4, generator=generator)
        losses += balance.train()(router_logits, router_logits.topk(2).indices, torch.tensor(4), 8)
    return torch.stack([*losses, *balance.e_score_correction_bias])


def run(rank, file, output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = {}
    for name, shape, dims in (
        ("tp", (2,), ("tp",)),
        ("dp_shard, tp", (1, 2), ("dp_shard", "tp")),
        ("dp_replicate, dp_shard, cp", (1, 1, 2), ("dp_replicate", "dp_shard", "cp")),
        ("dp_shard", (2,), ("dp_shard",)),
    ):
        model = nn.Sequential(ExpertBalance(4, 0.01))
        set_balance_group(model, init_device_mesh("cpu", shape, mesh_dim_names=dims))
        found[name] = (model[0].process_group is None, one_step(model[0]))
    if rank == 0:
        torch.save(found, output)
    dist.destroy_process_group()


def test_a_batch_that_is_shared_by_processes_counts_once(tmp_path):
    torch.multiprocessing.spawn(run, (tmp_path / "store", tmp_path / "found.pt"), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    expected = one_step(ExpertBalance(4, 0.01))
    for name in ("tp", "dp_shard, tp", "dp_replicate, dp_shard, cp"):
        is_world, values = found[name]
        assert not is_world
        torch.testing.assert_close(values, expected)
    # If each process has its own batch, all batches count, and the first batch ends the step.
    is_world, values = found["dp_shard"]
    assert is_world
    assert not torch.allclose(values, expected)


def test_data_parallel_is_refused(parts, tmp_path, monkeypatch):
    """The `Trainer` uses data parallelism for a single process on a machine with several GPUs."""
    model, processor = compose(parts, "moe_cif")
    dataset = load_asr_dataset(str(write_speech_dataset(tmp_path / "speech")))
    options = training_options(tmp_path)
    for arguments_class, trainer_class in ((LlmAsrTrainingArguments, LlmAsrTrainer), (TrainingArguments, Trainer)):
        arguments = arguments_class(**options)
        arguments.n_gpu  # noqa: B018 (the property is computed at the first access)
        arguments._n_gpu = 2
        if trainer_class is LlmAsrTrainer:
            with pytest.raises(ValueError, match="`torchrun --nproc_per_node 2`"):
                trainer_class(model, arguments, LlmAsrDataCollator(processor), dataset)
    # A plain `Trainer` calls this method for each batch.
    with pytest.raises(RuntimeError, match="loses the state of routers.* `torchrun --nproc_per_node NUM_GPUS`"):
        model._replicate_for_data_parallel()
    for module in model.modules():
        if module is not model and hasattr(module, "projector"):
            with pytest.raises(RuntimeError, match="torchrun"):
                module._replicate_for_data_parallel()
