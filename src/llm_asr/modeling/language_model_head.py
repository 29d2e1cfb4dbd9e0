"""Logits, computed from hidden states as the class of the language model computes them."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .model_interface import HeadedModelInterface


class LanguageModelHead:
    """
    What a causal language model does between its last hidden state and its logits.

    Families scale, cap or cast there. The `forward` of the family's own class runs here, so that no family has to be known.
    It runs on a second instance, whose weights are on the meta device and are not read: its base model returns the hidden
    states that it is given, and its output embeddings are the `lm_head` of the call.

    Args:
        text_config (`PreTrainedConfig`): Configuration of the language model.

    Raises:
        `ValueError`: If the family has weights between its last hidden state and its logits beside one linear layer.
    """

    def __init__(self, text_config: PreTrainedConfig):
        config = copy.deepcopy(text_config)
        if hasattr(config, "output_router_logits"):
            # With this option the class would compute a balance loss, but the routers do not run here.
            config.output_router_logits = False
        with torch.device("meta"):
            self.text_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        check_linear_head(self.text_model)
        for module in (self.text_model.base_model, self.text_model.get_decoder()):
            module.forward = _return_hidden_states

    def __call__(self, hidden_states: torch.Tensor, lm_head: nn.Module) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(..., hidden_size)`): Last hidden states, in two or three dimensions.
            lm_head (`nn.Module`): The linear layer.

        Returns:
            `torch.Tensor` of shape `(..., vocab_size)`: Logits.
        """
        if self.text_model.get_output_embeddings() is not lm_head:
            # Adapters and new embeddings replace the layer.
            self.text_model.set_output_embeddings(lm_head)
        is_packed = hidden_states.dim() == 2
        batch = hidden_states[None] if is_packed else hidden_states
        logits = self.text_model(inputs_embeds=batch, use_cache=False, return_dict=True).logits
        return logits[0] if is_packed else logits


class LlmAsrHeadMixin(HeadedModelInterface):
    """Adds logits to [`LlmAsrForConditionalGeneration`]."""

    def get_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Compute logits as the language model's own class does, which may scale, cap or cast what `lm_head` gives.

        Args:
            hidden_states (`torch.Tensor` of shape `(..., text_hidden_size)`):
                Last hidden states of the language model, in two or three dimensions.

        Returns:
            `torch.Tensor` of shape `(..., vocab_size)`
        """
        return self.language_model_head(hidden_states, self.lm_head)


@dataclass
class _GivenHiddenStates(MoeModelOutputWithPast):
    """An output with all fields that heads read from the outputs of base models."""

    cross_attentions: tuple[torch.Tensor] | None = None


def _return_hidden_states(*args, inputs_embeds: torch.Tensor, **kwargs) -> _GivenHiddenStates:
    return _GivenHiddenStates(last_hidden_state=inputs_embeds)


def take_language_model(model: PreTrainedModel) -> PreTrainedModel:
    """
    Take the causal language model out of a model that reads images or other inputs, too.

    Args:
        model (`PreTrainedModel`): As `AutoModelForCausalLM` loads it.

    Returns:
        `PreTrainedModel`: `model` itself if it only reads text. It shares the weights of `model`.
    """
    text_config = model.config.get_text_config(decoder=True)
    if text_config is model.config:
        return model
    with torch.device("meta"):
        text_model = AutoModelForCausalLM.from_config(text_config)
    setattr(text_model, text_model.base_model_prefix, model.get_decoder())
    text_model.set_output_embeddings(model.get_output_embeddings())
    text_model.generation_config = model.generation_config
    text_model.config.name_or_path = model.config.name_or_path
    return text_model.train(model.training)


def check_linear_head(text_model: PreTrainedModel) -> None:
    """Raise a `ValueError` unless one linear layer holds all weights that follow the base model of `text_model`."""
    name, head = type(text_model).__name__, text_model.get_output_embeddings()
    if text_model.base_model is text_model or not isinstance(head, nn.Linear):
        raise ValueError(
            f"`text` is a {name}, whose logits are not read off a linear layer behind a base model; choose a language model "
            "that has one."
        )
    known = {id(parameter) for module in (text_model.base_model, head) for parameter in module.parameters()}
    others = [key for key, parameter in text_model.named_parameters() if id(parameter) not in known]
    if others:
        raise ValueError(
            f"`text` is a {name}, which has weights between its hidden states and its head ({others[0]!r}); choose a language "
            "model whose head is one linear layer."
        )


__all__ = ["LanguageModelHead", "LlmAsrHeadMixin", "check_linear_head", "take_language_model"]
