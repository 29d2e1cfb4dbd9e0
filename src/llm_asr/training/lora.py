"""Adds LoRA to the language model. The projector is trained fully."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration


def add_lora(
    model: LlmAsrForConditionalGeneration | PeftModel,
    rank: int,
    alpha: int = 32,
    dropout: float = 0.05,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    **lora_config,
) -> PeftModel:
    """
    Wrap a model for training LoRA (arXiv 2106.09685) on its language model together with its whole projector.

    Saving the result writes a PEFT adapter with both. `merge_and_unload` returns an ordinary
    [`LlmAsrForConditionalGeneration`].

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`):
            The model, which is changed in place: all other parameters are frozen. A model with adapters gets one more, which
            becomes the active one.
        rank (`int`):
            Rank of the update of every linear layer of the language model.
        alpha (`int`, *optional*, defaults to 32):
            Scale of the update. The update is multiplied by `alpha / rank`.
        dropout (`float`, *optional*, defaults to 0.05):
            Dropout on the input of the update.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Name of the adapter in PEFT.
        autocast_adapter_dtype (`bool`, *optional*, defaults to `True`):
            Whether to train LoRA and projector in float32 if the model is in half precision. PEFT has an argument of the
            same name.
        lora_config:
            Further fields of PEFT's [`LoraConfig`], such as `use_dora=True`. `target_modules` are searched only in the
            language model, unless `exclude_modules` is set. `modules_to_save` replaces the default of projector and draft
            head; `[]` trains only LoRA.

    Returns:
        `PeftModel`

    Raises:
        `ValueError`: If `rank` is not positive, or the model has an adapter of this name.
        `TypeError`: If [`LoraConfig`] does not have a field of `lora_config`.

    Example:

    ```python
    >>> model = add_lora(model, rank=16, adapter_name="es", use_dora=True)
    >>> model = add_lora(model, rank=16, adapter_name="it", use_dora=True)
    >>> model.set_adapter("es")
    ```"""
    if rank < 1:
        raise ValueError(f"`rank` must be positive, got {rank}.")
    base_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    options = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": rf"model\.language_model\..*\.({'|'.join(_linear_layers(base_model.model.language_model))})",
        # The layers of speech encoders have the same names as those of language models, so exclude them.
        "exclude_modules": r"(?!model\.language_model\.).*",
        "modules_to_save": ["projector"] if base_model.draft_head is None else ["projector", "draft_head"],
    }
    config = LoraConfig(**{**options, **lora_config})
    if not isinstance(model, PeftModel):
        model = get_peft_model(model, config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
    elif adapter_name in model.peft_config:
        raise ValueError(f"`adapter_name`: the model has an adapter {adapter_name!r}; choose another name.")
    else:
        model.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast_adapter_dtype)
        model.set_adapter(adapter_name)
    if autocast_adapter_dtype:
        # PEFT casts only LoRA, and not the modules in `modules_to_save`.
        base_model.cast_trainable_to_float32()
    return model


def _linear_layers(language_model: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers, without those of existing adapters."""
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lora_" not in name
    }
    return sorted(names)
