"""Counts where the host would wait for an accelerator, on a CPU."""

import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


# Their output has a size that only the device knows, or they bring a number to the host.
OPERATIONS = (
    "aten._local_scalar_dense",
    "aten.bincount",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero.",
    "aten.unique",
    "aten._unique",
)
# `tolist` on a CPU reads memory without an operation.
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class _Operations(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        waits = name.startswith(OPERATIONS)
        if name.startswith("aten.repeat_interleave"):
            waits = kwargs.get("output_size") is None
        if name.startswith(("aten.index.", "aten.index_put")):
            # A mask as an index is turned into indices first.
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if waits:
            self.waits.append(name)
        return func(*args, **kwargs)


class HostWaits(TorchFunctionMode):
    """
    Records waits while the context is open.

    Attributes:
        found (`list[str]`): The operations, each with the place in the code of a package that called it.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self._operations = _Operations(self)

    def append(self, name):
        places = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if "llm_asr/" in frame.filename or "transformers/" in frame.filename
        ]
        self.found.append(" < ".join([name, *places[:-4:-1]]))

    def __enter__(self):
        self._operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self.append(func.__name__)
        return func(*args, **(kwargs or {}))
