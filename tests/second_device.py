"""A second device for tests on a CPU. Operations refuse tensors of both devices, as with two GPUs."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)


class OnSecondDevice(torch.Tensor):
    """Wraps a tensor that claims to be on `SECOND`."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=SECOND,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.held = inner.detach()

    def tolist(self):
        # PyTorch reads the memory of a tensor, and a wrapper has none.
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Factories(TorchFunctionMode):
    """`torch.tensor` creates a tensor before any operation is dispatched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == SECOND:
            return OnSecondDevice(func(*args, **{**kwargs, "device": FIRST}))
        return func(*args, **kwargs)


@contextmanager
def two_devices():
    """Makes `.to(SECOND)` and `device=SECOND` work inside the block."""
    with Factories(), Operations():
        yield


def run(func, args, kwargs):
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    on_second = any(isinstance(tensor, OnSecondDevice) for tensor in tensors)
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    # A scalar may be on any device.
    on_first = any(not isinstance(tensor, OnSecondDevice) and tensor.dim() for tensor in tensors)
    if on_first and on_second and not moves:
        raise RuntimeError(f"{func} has tensors on two devices")
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": FIRST}
        on_second = device == SECOND
    elif func is torch.ops.aten.copy_.default:
        on_second = isinstance(args[0], OnSecondDevice)
    args, kwargs = tree_map(unwrap, (args, kwargs))
    result = func(*args, **kwargs)
    return tree_map(wrap, result) if on_second else result


def unwrap(value):
    return value.held if isinstance(value, OnSecondDevice) else value


def wrap(value):
    return OnSecondDevice(value) if type(value) is torch.Tensor else value


def place(module: nn.Module, device: torch.device) -> None:
    """Move a part to a device, and make it move its inputs too, as `device_map` does."""
    if device == SECOND:
        for one in module.modules():
            for name, parameter in list(one._parameters.items()):
                if parameter is not None:
                    one._parameters[name] = nn.Parameter(OnSecondDevice(parameter.data), parameter.requires_grad)
            for name, buffer in list(one._buffers.items()):
                if buffer is not None:
                    one._buffers[name] = OnSecondDevice(buffer)

    def move(module, args, kwargs):
        return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, (args, kwargs))

    for one in module.modules():
        one.register_forward_pre_hook(move, with_kwargs=True)
