"""Random initial weights of the projector and the draft head."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .cif import AlphaProjection
from .expert_balance import ExpertBalance
from .mixture_of_experts import Experts, TopKRouter
from .projector_qformer import QUERY_STD, QFormerProjector


@torch.no_grad()
def init_projector_module(module: nn.Module, initializer_range: float | None) -> None:
    """
    Initialise the weights of one module of the projector or the draft head. Other modules do not change.

    Args:
        module (`nn.Module`): One module, without its children.
        initializer_range (`float`, *optional*): Standard deviation of the weights. If absent, it is `fan_in ** -0.5`.
    """

    def draw(weight: torch.Tensor, fan_in: int | None = None) -> None:
        # Without `fan_in`, the weights are so small that routing and CIF's weights do not depend on the frames at first.
        std = initializer_range
        if std is None:
            std = 0.02 if fan_in is None else fan_in**-0.5
        init.normal_(weight, mean=0.0, std=std)

    if isinstance(module, Experts):
        for weight in (module.up_proj, module.down_proj):
            draw(weight, fan_in=weight.shape[-1])
        for bias in (module.up_proj_bias, module.down_proj_bias):
            if bias is not None:
                init.zeros_(bias)
    elif isinstance(module, TopKRouter):
        draw(module.weight)
        if module.up_proj is not None:
            draw(module.up_proj, fan_in=module.up_proj.shape[-1])
    elif isinstance(module, ExpertBalance):
        for buffer in module.buffers():
            init.zeros_(buffer)
    elif isinstance(module, QFormerProjector):
        # The layers of the Q-Former are initialised by its own class.
        init.normal_(module.query, mean=0.0, std=QUERY_STD)
    elif isinstance(module, AlphaProjection):
        draw(module.weight)
        init.constant_(module.bias, module.initial_bias)
    elif isinstance(module, (nn.Linear, nn.Conv1d)):
        draw(module.weight, fan_in=module.weight[0].numel())


def find_initializers(
    root: nn.Module, init_weights: Callable[[nn.Module], None]
) -> list[tuple[str, nn.Module, Callable[[nn.Module], None]]]:
    """
    Modules of a projector or a draft head, by name, each with the function that draws its own weights: `init_weights` or, in a
    model of Transformers such as a Q-Former, the function of that model.

    Args:
        root (`nn.Module`): The projector or the draft head.
        init_weights (`Callable`): `_init_weights` of the whole model.
    """
    own: dict[nn.Module, Callable[[nn.Module], None]] = {}
    for model in root.modules():
        if isinstance(model, PreTrainedModel):
            own.update(dict.fromkeys(model.modules(), model._init_weights))
    return [(name, module, own.get(module, init_weights)) for name, module in root.named_modules()]
