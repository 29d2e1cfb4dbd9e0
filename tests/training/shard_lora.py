"""
Trains LoRA, projector and draft head with FSDP2, as `accelerate` does with `examples/recipes/accelerate/fsdp2.yaml`, and
compares them with unsharded training: `torchrun shard_lora.py FOLDER AUDIO_MODEL TEXT_MODEL`.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor


TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))

RECIPE = TESTS.parent / "examples" / "recipes" / "accelerate" / "fsdp2.yaml"


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """Shard a model as `accelerate` does. On a CPU, `accelerate` itself does not shard."""
    options = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["fsdp_config"]
    version = options.pop("fsdp_version")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, **{name.removeprefix("fsdp_"): value for name, value in options.items()}
    )
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp_shard",))
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp_shard"]),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
    )
    return fsdp2_prepare_model(accelerator, model)


def train(model: torch.nn.Module, batch: dict, num_items: torch.Tensor, num_processes: int = 1) -> torch.Tensor:
    """Train three steps, and return the losses of this process."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # With a smaller `eps`, rounding errors of gradients near zero would become full steps.
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3)
    losses = []
    for _ in range(3):
        loss = model(**batch, num_items_in_batch=num_items).loss
        # FSDP averages gradients over processes, but the loss is a part of a sum.
        (num_processes * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def main(folder: str, audio: str, text: str) -> None:
    from tiny_models import compose

    from llm_asr.training.lora import add_lora

    torch.set_num_threads(1)
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parts = {"whisper": audio, "qwen2": text}
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model, processor = compose(parts, "moe_cif", draft_head=True, router_bias_update_rate=0.01)
        models.append(add_lora(model, rank=2, dropout=0.0))
    whole, sharded = models
    sharded.load_state_dict(whole.state_dict())

    recordings = [0.1 * torch.randn(length).numpy() for length in (8000, 12000, 6000, 16000)]
    transcripts = ["one two", "tres", "three", "uno dos tres cuatro"]
    batch = processor.apply_transcription_request(recordings, transcription=transcripts)
    request = processor.apply_transcription_request(recordings)
    num_items = (batch["labels"] != -100).sum()

    expected = train(whole, batch, num_items)
    expected_ids = whole.eval().generate(**request, max_new_tokens=8)
    if rank == 0:
        whole.save_pretrained(f"{folder}/whole")

    dist.init_process_group("gloo")
    sharded = shard(sharded)
    parameters = dict(sharded.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    held, total = (sum(map(size, parameters.values())) for size in (lambda p: p.to_local().numel(), torch.numel))
    assert held < 0.6 * total, (held, total)
    rows = {name: tensor[rank::num_processes] for name, tensor in batch.items()}
    losses = train(sharded, rows, num_items, num_processes)
    dist.all_reduce(losses)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)

    register_fsdp_forward_method(sharded, "generate")
    found_ids = sharded.eval().generate(**request, max_new_tokens=8, synced_gpus=True)
    assert torch.equal(found_ids, expected_ids)

    state_dict = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        sharded.save_pretrained(f"{folder}/sharded", state_dict=state_dict)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
