"""LoRA on the language model, beside a fully trained projector."""

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration


def add_lora(
    model: LlmAsrForConditionalGeneration | PeftModel,
    rank: int,
    alpha: int = 32,
    dropout: float = 0.05,
    adapter_name: str = "default",
    **lora_config,
) -> PeftModel:
    """
    Wrap a model so that LoRA (arXiv 2106.09685) on its language model and its whole projector are trained.

    Saving the result writes a PEFT adapter that holds both; `merge_and_unload` gives back an ordinary
    [`LlmAsrForConditionalGeneration`].

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`):
            Changed in place: all else is frozen. A model that has adapters gets one more, which becomes the active one.
        rank (`int`):
            Rank of the update of every linear layer of the language model.
        alpha (`int`, *optional*, defaults to 32):
            Scale of the update, divided by `rank`.
        dropout (`float`, *optional*, defaults to 0.05):
            Dropout of the update's input.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            What PEFT is to call the adapter.
        lora_config:
            Further fields of PEFT's [`LoraConfig`], such as `use_dora=True`. `target_modules` are looked for in the language
            model alone, unless `exclude_modules` says otherwise; `modules_to_save` takes the place of the projector and the
            draft head, and `[]` trains LoRA alone.

    Returns:
        `PeftModel`

    Raises:
        `ValueError`: If `rank` is not positive, or the model has an adapter of this name.
        `TypeError`: If [`LoraConfig`] has no such field.

    Example:

    ```python
    >>> model = add_lora(model, rank=16, adapter_name="es", use_dora=True)
    >>> model = add_lora(model, rank=16, adapter_name="it", use_dora=True)
    >>> model.set_adapter("es")
    ```"""
    if rank < 1:
        raise ValueError(f"`rank` must be positive, got {rank}.")
    base_model = model.get_base_model() if isinstance(model, PeftModel) else model
    options = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": rf"model\.language_model\..*\.({'|'.join(_linear_layers(base_model.model.language_model))})",
        # Speech encoders call their layers as language models do.
        "exclude_modules": r"(?!model\.language_model\.).*",
        "modules_to_save": ["projector"] if base_model.draft_head is None else ["projector", "draft_head"],
    }
    config = LoraConfig(**{**options, **lora_config})
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name)
    if adapter_name in model.peft_config:
        raise ValueError(f"`adapter_name`: the model has an adapter {adapter_name!r}; choose another name.")
    model.add_adapter(adapter_name, config)
    model.set_adapter(adapter_name)
    return model


def _linear_layers(language_model: nn.Module) -> list[str]:
    """Last parts of their names, below the adapters that are there."""
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    return sorted(names)
