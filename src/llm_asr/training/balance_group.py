"""Selects the processes of a distributed run over which expert statistics are summed."""

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ..modeling.expert_balance import ExpertBalance


# Accelerate's names of the dimensions along which processes have different batches.
DATA_DIMENSIONS = ("dp_replicate", "dp_shard", "dp")


def set_balance_group(model: nn.Module, mesh: DeviceMesh | None) -> None:
    """
    Sum the balance statistics of experts over the processes with different batches.

    With tensor, sequence or context parallelism, several processes share a batch. A sum over all processes would count such a
    batch several times.

    Args:
        model (`nn.Module`): The model. A model without experts does not change.
        mesh (`DeviceMesh`, *optional*): Device mesh of the run with Accelerate's dimension names. Without a mesh, each
            process has its own batches.
    """
    if mesh is None or mesh.mesh_dim_names is None or all(name in DATA_DIMENSIONS for name in mesh.mesh_dim_names):
        return
    data = tuple(name for name in mesh.mesh_dim_names if name in DATA_DIMENSIONS)
    group = (mesh[data]._flatten() if len(data) > 1 else mesh[data[0]]).get_group() if data else _own_group()
    for module in model.modules():
        if isinstance(module, ExpertBalance):
            module.process_group = group


def _own_group() -> dist.ProcessGroup:
    """A group with only this process, for runs in which all processes share one batch."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


__all__ = ["set_balance_group"]
