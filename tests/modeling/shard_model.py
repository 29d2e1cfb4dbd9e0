"""Shards a model with FSDP2 over processes, and compares it with the unsharded model: `torchrun shard_model.py FOLDER`."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))


def main(folder: str) -> None:
    from tiny_models import compose, save_tiny_qwen2, save_tiny_whisper

    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    parts = {"whisper": f"{folder}/whisper-{rank}", "qwen2": f"{folder}/qwen2-{rank}"}
    torch.manual_seed(0)
    save_tiny_whisper(parts["whisper"])
    save_tiny_qwen2(parts["qwen2"])
    torch.manual_seed(0)
    model, processor = compose(parts, "moe_cif", num_shared_experts=1, router_bias_update_rate=0.01)
    model.train()
    audio = [0.1 * torch.randn(length).numpy() for length in (8000, 12000)]
    batch = processor.apply_transcription_request(audio, transcription=["one two", "tres"])

    whole = model(**batch)
    whole.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.model.projector.named_parameters()}
    model.zero_grad()
    model.model.projector.moe.balance.e_score_correction_bias.zero_()

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.model.projector, mesh=mesh)
    fully_shard(model, mesh=mesh)
    up_proj = model.model.projector.moe.experts.up_proj
    assert isinstance(up_proj, DTensor), type(up_proj)
    assert up_proj.to_local().shape == (4 // dist.get_world_size(), 16, 32), up_proj.to_local().shape
    sharded = model(**batch)
    sharded.loss.backward()
    torch.testing.assert_close(sharded.loss, whole.loss)
    torch.testing.assert_close(sharded.router_aux_loss, whole.router_aux_loss)
    for name, parameter in model.model.projector.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
