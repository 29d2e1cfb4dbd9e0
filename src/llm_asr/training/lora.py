"""LoRA on the language model, beside a fully trained projector."""

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration


def add_lora(model: LlmAsrForConditionalGeneration, rank: int, alpha: int = 32, dropout: float = 0.05) -> PeftModel:
    """
    Wrap a model so that LoRA (arXiv 2106.09685) on its language model and its whole projector are trained.

    Saving the result writes a PEFT adapter that holds both; `merge_and_unload` gives back an ordinary
    [`LlmAsrForConditionalGeneration`].

    Args:
        model ([`LlmAsrForConditionalGeneration`]): Changed in place: all else is frozen.
        rank (`int`): Rank of the update of every linear layer of the language model.
        alpha (`int`, *optional*, defaults to 32): Scale of the update, divided by `rank`.
        dropout (`float`, *optional*, defaults to 0.05): Dropout of the update's input.

    Returns:
        `PeftModel`

    Raises:
        `ValueError`: If `rank` is not positive.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be positive, got {rank}.")
    leaves = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.model.language_model.named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"model\.language_model\..*\.({'|'.join(leaves)})",
        modules_to_save=["projector"] if model.draft_head is None else ["projector", "draft_head"],
    )
    return get_peft_model(model, config)
