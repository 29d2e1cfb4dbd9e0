"""
Trains one step with DDP and with FSDP2 in one process, and compares the loss and gradients with those of the plain model:

    torchrun --nproc_per_node 1 tests/gpu/one_process.py DEVICE FOLDER
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


sys.path.append(str(Path(__file__).parents[1]))


def main(device_type: str, folder: str) -> None:
    from tiny_models import compose, save_tiny_qwen2, save_tiny_whisper

    device = torch.device(device_type, int(os.environ["LOCAL_RANK"])) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    parts = {"whisper": f"{folder}/whisper", "qwen2": f"{folder}/qwen2"}
    torch.manual_seed(0)
    save_tiny_whisper(parts["whisper"])
    save_tiny_qwen2(parts["qwen2"])
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.to(device).train()
    audio = [0.1 * torch.randn(length).numpy() for length in (8000, 12000)]
    batch = processor.apply_transcription_request(audio, transcription=["one two", "tres"]).to(device)

    plain = copy.deepcopy(model)
    expected = plain(**batch).loss
    expected.backward()
    gradients = {name: each.grad for name, each in plain.named_parameters() if each.grad is not None}
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")

    ddp = DistributedDataParallel(copy.deepcopy(model), find_unused_parameters=False)
    loss = ddp(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, each in ddp.module.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(each.grad, gradients[name], rtol=1e-3, atol=1e-5)
    print("DDP: same loss and gradients")

    fully_shard(model.model.projector, mesh=init_device_mesh(device_type, (1,)))
    fully_shard(model, mesh=init_device_mesh(device_type, (1,)))
    loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, each in model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(each.grad.full_tensor(), gradients[name], rtol=1e-3, atol=1e-5)
    print("FSDP2: same loss and gradients")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
