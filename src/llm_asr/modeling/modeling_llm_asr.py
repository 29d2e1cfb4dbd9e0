"""Speech encoder → projector → causal language model."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .audio_tower import build_audio_tower, run_audio_tower
from .cif import AlphaProjection, quantity_loss
from .configuration_llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from .draft_head import DraftHead, draft_labels
from .expert_balance import ExpertBalance
from .generation_llm_asr import LlmAsrGenerationMixin
from .loading_llm_asr import LlmAsrLoadingMixin
from .merging import MergedInputs, find_audio_runs, merge_audio
from .mixture_of_experts import Experts, TopKRouter
from .projector_llm_asr import build_projector
from .quantization import adopt_quantization, quantize_language_model_alone
from .slim_checkpoint import load_parts


# Above what is spoken and read in any script, and below what a repeating model writes.
MAX_NEW_TOKENS_PER_SECOND = 20.0


@dataclass
class LlmAsrAudioOutput(ModelOutput):
    r"""
    Encoded and projected recordings; "packed" means concatenated over recordings, in order, without padding.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(num_recordings, num_frames, audio_hidden_size)`):
            Output of the speech encoder.
        pooler_output (`torch.FloatTensor` of shape `(sum(audio_lengths), text_hidden_size)`):
            Packed projected embeddings.
        audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`):
            Embeddings of each recording.
        num_frames (`torch.LongTensor` of shape `(num_recordings,)`):
            Real frames of `last_hidden_state`.
        router_logits (`torch.FloatTensor` of shape `(sum(audio_lengths), num_experts)`, *optional*):
            With a mixture of experts.
        selected_experts (`torch.LongTensor` of shape `(sum(audio_lengths), num_experts_per_tok)`, *optional*):
            Experts that each embedding came through.
        alphas (`torch.FloatTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            CIF weights, zero in padding.
        quantities (`torch.FloatTensor` of shape `(num_recordings,)`, *optional*):
            Numbers of embeddings that CIF predicted, before any scaling.
        fire_times (`torch.FloatTensor` of shape `(sum(audio_lengths),)`, *optional*):
            Packed times at which CIF fired, in seconds from the start of each recording.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    audio_lengths: torch.LongTensor | None = None
    num_frames: torch.LongTensor | None = None
    router_logits: torch.FloatTensor | None = None
    selected_experts: torch.LongTensor | None = None
    alphas: torch.FloatTensor | None = None
    quantities: torch.FloatTensor | None = None
    fire_times: torch.FloatTensor | None = None


@dataclass
class LlmAsrModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    Output of [`LlmAsrModel`]. Sequences are as long as the prompt after each audio token grew to its recording.

    Args:
        audio_outputs ([`LlmAsrAudioOutput`], *optional*, returned when there is audio):
            Encoded and projected recordings.
        merged_inputs (`MergedInputs`, *optional*, returned when there is audio):
            Where each position of the merged sequence came from.
    """

    audio_outputs: LlmAsrAudioOutput | None = None
    merged_inputs: MergedInputs | None = None


@dataclass
class LlmAsrCausalLMOutputWithPast(ModelOutput):
    r"""
    Output of [`LlmAsrForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
            `lm_loss + quantity_loss_coef * quantity_loss + draft_loss_coef * draft_loss + router_aux_loss_coef *
            router_aux_loss + router_z_loss_coef * router_z_loss`, of the parts that the model has.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Prediction scores over the merged sequence, in which each audio token grew to its recording.
        past_key_values (`Cache`, *optional*):
            Key and value states of the language model.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the language model.
        lm_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of the labels.
        quantity_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Error of CIF's predicted number of tokens, per label.
        draft_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of the drafts.
        router_aux_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Load-balancing loss.
        router_z_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Router z-loss.
        router_logits (`torch.FloatTensor` of shape `(sum(audio_lengths), num_experts)`, *optional*):
            Router scores of real frames, packed over recordings.
        selected_experts (`torch.LongTensor` of shape `(sum(audio_lengths), num_experts_per_tok)`, *optional*):
            Experts that each embedding came through.
        audio_embeds (`torch.FloatTensor` of shape `(sum(audio_lengths), text_hidden_size)`, *optional*):
            Projected embeddings, packed over recordings.
        audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*):
            Embeddings of each recording.
        alphas (`torch.FloatTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            CIF weights, zero in padding.
        quantities (`torch.FloatTensor` of shape `(num_recordings,)`, *optional*):
            Numbers of embeddings that CIF predicted, before any scaling.
        fire_times (`torch.FloatTensor` of shape `(sum(audio_lengths),)`, *optional*):
            Packed CIF fire times, in seconds.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor] | None = None
    attentions: tuple[torch.FloatTensor] | None = None
    lm_loss: torch.FloatTensor | None = None
    quantity_loss: torch.FloatTensor | None = None
    draft_loss: torch.FloatTensor | None = None
    router_aux_loss: torch.FloatTensor | None = None
    router_z_loss: torch.FloatTensor | None = None
    router_logits: torch.FloatTensor | None = None
    selected_experts: torch.LongTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    audio_lengths: torch.LongTensor | None = None
    alphas: torch.FloatTensor | None = None
    quantities: torch.FloatTensor | None = None
    fire_times: torch.FloatTensor | None = None


class LlmAsrPreTrainedModel(LlmAsrLoadingMixin, PreTrainedModel):
    config: LlmAsrConfig
    config_class = LlmAsrConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    # It moves in steps too small for lower precision.
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, quantization_config=None, **kwargs):
        """
        See [`LlmAsrLoadingMixin.from_pretrained`] and [`PreTrainedModel.from_pretrained`]; `quantization_config` is of the
        language model's layers alone.
        """
        if quantization_config is not None:
            quantization_config = quantize_language_model_alone(quantization_config)
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, quantization_config=quantization_config, **kwargs
        )

    @classmethod
    def headed_class(cls) -> type["LlmAsrForConditionalGeneration"]:
        """The class whose weights a checkpoint has: this one or, if it has no head, the one that has."""
        return cls if issubclass(cls, LlmAsrForConditionalGeneration) else LlmAsrForConditionalGeneration

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Experts):
            for weight in (module.up_proj, module.down_proj):
                self._draw(weight, fan_in=weight.shape[-1])
        elif isinstance(module, TopKRouter):
            self._draw(module.weight)
            if module.up_proj is not None:
                self._draw(module.up_proj, fan_in=module.up_proj.shape[-1])
        elif isinstance(module, ExpertBalance):
            for buffer in module.buffers():
                init.zeros_(buffer)
        elif isinstance(module, AlphaProjection):
            self._draw(module.weight)
            init.constant_(module.bias, module.initial_bias)
        elif isinstance(module, (nn.Linear, nn.Conv1d)) and module is not self.get_output_embeddings():
            self._draw(module.weight, fan_in=module.weight[0].numel())

    def _draw(self, weight: nn.Parameter, fan_in: int | None = None) -> None:
        """Without `fan_in` so small that routing and CIF's weights begin indifferent to the frames."""
        std = self.config.projector_config.initializer_range
        if std is None:
            std = 0.02 if fan_in is None else fan_in**-0.5
        init.normal_(weight, mean=0.0, std=std)


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of `module` requires a gradient."""
    return not any(parameter.requires_grad for parameter in module.parameters())


class LlmAsrModel(LlmAsrPreTrainedModel):
    """
    The speech encoder, the projector and the language model, without a language modelling head.

    Args:
        config ([`LlmAsrConfig`]): Configuration.
        audio_tower (`nn.Module`, *optional*): A loaded speech encoder; built with random weights if absent.
        language_model (`PreTrainedModel`, *optional*): A loaded headless language model; built with random weights if
            absent.
    """

    def __init__(
        self,
        config: LlmAsrConfig,
        audio_tower: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.audio_tower = build_audio_tower(config.audio_config) if audio_tower is None else audio_tower
        self.projector = build_projector(config)
        if language_model is None:
            language_model = AutoModel.from_config(config.text_config)
        self.language_model = language_model
        self.post_init()

    def train(self, mode: bool = True) -> "LlmAsrModel":
        """Like `nn.Module.train`, but frozen parts stay in eval mode: their dropout would be noise nothing learns from."""
        super().train(mode)
        if is_frozen(self.audio_tower):
            self.audio_tower.eval()
        if is_frozen(self.language_model):
            self.language_model.eval()
            # Gradients pass through a frozen language model, and Transformers saves their memory only where a layer
            # itself is in train mode; the dropout is in the modules below it.
            if self.language_model.is_activation_checkpointing:
                for module in self.language_model.modules():
                    if isinstance(module, GradientCheckpointingLayer):
                        module.training = mode
        return self

    def get_audio_hidden_states(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the speech encoder alone, for instance to cache its output.

        Args:
            input_features (`torch.FloatTensor`):
                Features as the encoder's feature extractor makes them.
            input_features_mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`, *optional*):
                Non-zero for real feature frames; all are real if absent.

        Returns:
            `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, audio_hidden_size)` and a boolean
            mask of shape `(num_recordings, num_frames)`.

        Raises:
            `ValueError`: If a recording has no real frame, or more than the encoder takes.
        """
        if input_features_mask is None:
            time_dim = -1 if self.config.audio_config.model_type == "whisper" else 1
            shape = (input_features.shape[0], input_features.shape[time_dim])
            input_features_mask = torch.ones(shape, dtype=torch.long, device=input_features.device)
        empty = (input_features_mask.sum(-1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"`input_features_mask` leaves no frame to recording(s) {empty}; remove them.")
        with torch.no_grad() if is_frozen(self.audio_tower) else nullcontext():
            return run_audio_tower(
                self.audio_tower,
                input_features.to(self.audio_tower.dtype),
                input_features_mask,
                self.config.encoder_padding,
                **kwargs,
            )

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlmAsrAudioOutput:
        """
        Encode and project recordings.

        Args:
            input_features, input_features_mask (`torch.Tensor`, *optional*):
                See [`LlmAsrModel.get_audio_hidden_states`].
            audio_hidden_states (`torch.FloatTensor` of shape `(num_recordings, num_frames, audio_hidden_size)`, *optional*):
                Encoder output, in place of `input_features`.
            audio_hidden_states_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`, *optional*):
                Non-zero for its real frames; all are real if absent.
            target_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*):
                Number of embeddings that CIF is to fire for each recording.

        Returns:
            [`LlmAsrAudioOutput`]
        """
        if (input_features is None) == (audio_hidden_states is None):
            raise ValueError("Pass either `input_features` or `audio_hidden_states`, and not both.")
        if audio_hidden_states is None:
            audio_hidden_states, mask = self.get_audio_hidden_states(input_features, input_features_mask, **kwargs)
        elif audio_hidden_states_mask is None:
            mask = torch.ones(audio_hidden_states.shape[:2], dtype=torch.bool, device=audio_hidden_states.device)
        else:
            mask = audio_hidden_states_mask.bool()
        projector_dtype = next(self.projector.parameters()).dtype
        projected = self.projector(audio_hidden_states.to(projector_dtype), mask, target_lengths)
        return LlmAsrAudioOutput(
            last_hidden_state=audio_hidden_states,
            pooler_output=projected.embeds,
            audio_lengths=projected.lengths,
            num_frames=mask.sum(-1),
            router_logits=projected.router_logits,
            selected_experts=projected.selected_experts,
            alphas=projected.alphas,
            quantities=projected.quantities,
            fire_times=projected.fire_times,
        )

    def merge_audio_and_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        padding_side: str = "right",
        **kwargs,
    ) -> tuple[MergedInputs, LlmAsrAudioOutput]:
        """
        Embed `input_ids` and put each recording in the place of its audio token.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens with one audio token, or one run of audio tokens, for each recording. A run says how many
                embeddings its recording gets: CIF fires as many, a fixed-rate projector must agree.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Non-zero for real tokens; all are real if absent.
            padding_side (`str`, *optional*, defaults to `"right"`):
                Side on which the merged rows are padded.
            input_features, audio_hidden_states, target_lengths, kwargs:
                See [`LlmAsrModel.get_audio_features`].

        Raises:
            `ValueError`: If audio tokens and recordings, or their lengths, do not match.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        recordings = input_features if audio_hidden_states is None else audio_hidden_states
        audio_runs = find_audio_runs(input_ids, attention_mask, self.config.audio_token_id, recordings.shape[0])
        if audio_runs.lengths is not None:
            target_lengths = audio_runs.lengths
        audio_outputs = self.get_audio_features(
            input_features=input_features,
            audio_hidden_states=audio_hidden_states,
            target_lengths=target_lengths,
            return_dict=True,
            **kwargs,
        )
        merged_inputs = merge_audio(
            self.get_input_embeddings()(input_ids),
            attention_mask,
            audio_runs,
            audio_outputs.pooler_output,
            audio_outputs.audio_lengths,
            padding_side,
        )
        return merged_inputs, audio_outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlmAsrModelOutputWithPast:
        """See [`LlmAsrForConditionalGeneration.forward`]."""
        merged_inputs = audio_outputs = None
        if input_features is not None or audio_hidden_states is not None:
            if input_ids is None:
                raise ValueError("`input_ids` must be passed with audio: it says where the audio goes.")
            merged_inputs, audio_outputs = self.merge_audio_and_text(
                input_ids=input_ids,
                attention_mask=attention_mask,
                input_features=input_features,
                input_features_mask=input_features_mask,
                audio_hidden_states=audio_hidden_states,
                audio_hidden_states_mask=audio_hidden_states_mask,
                target_lengths=target_lengths,
            )
            inputs_embeds = merged_inputs.inputs_embeds
            attention_mask = merged_inputs.attention_mask
            position_ids = merged_inputs.position_ids
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return LlmAsrModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_outputs=audio_outputs,
            merged_inputs=merged_inputs,
        )


class LlmAsrForConditionalGeneration(LlmAsrPreTrainedModel, LlmAsrGenerationMixin):
    """
    Speech recognition with a speech encoder, a projector and a causal language model with its head.

    Args:
        config ([`LlmAsrConfig`]): Configuration.
        audio_tower (`nn.Module`, *optional*): A loaded speech encoder; built with random weights if absent.
        text_model (`PreTrainedModel`, *optional*): A loaded causal language model with its head; built with random
            weights if absent.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Filled in for each instance, because the embedding has another name in every language model.
    _tied_weights_keys = {}

    def __init__(
        self,
        config: LlmAsrConfig,
        audio_tower: nn.Module | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        text_config = config.text_config
        if text_model is None:
            self.model = LlmAsrModel(config, audio_tower)
            self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        else:
            self.model = LlmAsrModel(config, audio_tower, text_model.base_model)
            self.lm_head = text_model.get_output_embeddings()
        self.draft_head = DraftHead(config) if config.projector_config.draft_head else None
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @classmethod
    def from_audio_text_pretrained(
        cls,
        audio: str,
        text: str,
        projector_type: str = "moe_cif",
        *,
        freeze_audio: bool = True,
        freeze_text: bool = True,
        encoder_padding: str = "longest",
        processor=None,
        audio_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        **projector_kwargs,
    ) -> "LlmAsrForConditionalGeneration":
        """
        Compose a pretrained speech encoder and a pretrained language model with a new projector between them.

        Args:
            audio (`str`):
                Local folder or Hub id of the speech encoder.
            text (`str`):
                Local folder or Hub id of the causal language model.
            projector_type (`str`, *optional*, defaults to `"moe_cif"`):
                See [`LlmAsrProjectorConfig`].
            freeze_audio (`bool`, *optional*, defaults to `True`):
                Whether the speech encoder is frozen.
            freeze_text (`bool`, *optional*, defaults to `True`):
                Whether the language model and its head are frozen.
            encoder_padding (`str`, *optional*, defaults to `"longest"`):
                See [`LlmAsrConfig`].
            processor ([`LlmAsrProcessor`], *optional*):
                The processor the model is to work with. Defaults to the one that
                `LlmAsrProcessor.from_audio_text_pretrained(audio, text)` composes.
            audio_kwargs, text_kwargs (`dict`, *optional*):
                Passed on to `from_pretrained` of the parts (`dtype`, `revision`, `attn_implementation`,
                `quantization_config` of the language model, ...).
            projector_kwargs:
                Fields of [`LlmAsrProjectorConfig`].

        Returns:
            [`LlmAsrForConditionalGeneration`]: Its projector has random weights, in float32.

        Raises:
            `ValueError`: If an option of the projector is unknown or impossible, or a part is of an unsupported family.

        Example:

        ```python
        >>> from llm_asr import LlmAsrForConditionalGeneration

        >>> model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        ...     "openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct", projector_type="moe_cif", num_experts=8
        ... )
        ```"""
        projector_config = LlmAsrProjectorConfig(projector_type=projector_type, **projector_kwargs)
        if processor is None:
            # Looked up in Transformers' registry: `modeling` and `processing` do not import each other.
            processor = PROCESSOR_MAPPING[cls.config_class].from_audio_text_pretrained(audio, text)
        audio_kwargs, text_kwargs = audio_kwargs or {}, text_kwargs or {}
        audio_tower, text_model = load_parts(audio, text, audio_kwargs, text_kwargs)
        _check_plain_head(text_model)
        _make_room(text_model, processor.audio_token_id)

        config = cls.config_class(
            audio_config=audio_tower.config,
            text_config=text_model.config,
            projector_config=projector_config,
            audio_token_id=processor.audio_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            audio_frame_rate=processor.sampling_rate / processor.samples_per_frame,
            encoder_padding=encoder_padding,
            # A new composite configuration would reset what the parts resolved when they were loaded.
            attn_implementation={
                "audio_config": audio_tower.config._attn_implementation,
                "text_config": text_model.config._attn_implementation,
            },
        )
        generation_config = GenerationConfig(
            max_new_tokens_per_second=MAX_NEW_TOKENS_PER_SECOND,
            num_beams=1,
            do_sample=False,
            bos_token_id=processor.tokenizer.bos_token_id,
            eos_token_id=_all_eos_token_ids(processor.tokenizer, text_model.generation_config),
            pad_token_id=processor.tokenizer.pad_token_id,
            transcription_prompt_ids=processor.transcription_prompt_ids,
        )
        model = cls(config, audio_tower, text_model)
        model.generation_config = generation_config
        adopt_quantization(model, text_model)
        if freeze_audio:
            model.freeze_audio_tower()
        if freeze_text:
            model.freeze_language_model()
        return model.eval()

    def freeze_audio_tower(self) -> None:
        """Exclude the speech encoder from training."""
        self.model.audio_tower.requires_grad_(False).eval()

    def freeze_language_model(self) -> None:
        """Exclude the language model and its head from training."""
        self.model.language_model.requires_grad_(False).eval()
        self.lm_head.requires_grad_(False)

    def get_audio_features(self, *args, **kwargs) -> LlmAsrAudioOutput:
        """See [`LlmAsrModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        audio_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlmAsrCausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens with one audio token for each recording, in row-major order. A run of audio tokens for each
                recording is accepted as well: it fixes the number of embeddings.
            input_features (`torch.FloatTensor`, *optional*):
                Features of the recordings: `(num_recordings, num_mel_bins, num_mel_frames)` for Whisper encoders,
                `(num_recordings, num_feature_frames, feature_size)` for others.
            input_features_mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`, *optional*):
                Non-zero for real feature frames.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Non-zero for real tokens of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                `input_ids` where they are to be predicted, -100 elsewhere. Every row must have a target.
            audio_hidden_states (`torch.FloatTensor` of shape `(num_recordings, num_frames, audio_hidden_size)`, *optional*):
                Cached output of the speech encoder, in place of `input_features`.
            audio_hidden_states_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`, *optional*):
                Non-zero for its real frames.
            target_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*):
                Tokens of each transcript, which CIF is to fire and to predict. Defaults to the number of labels of each
                row that are not an end-of-sequence token.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels in the whole optimizer step, over gradient accumulation and processes, as the `Trainer`
                passes it. Every part of the loss is normalised by it.
            skip_logits (`bool`, *optional*):
                Whether the head runs only where there are labels, and `logits` are left out of the output: prompts and
                audio are most of a batch, and a vocabulary may be larger than all else. Defaults to `True` in training.

        Returns:
            [`LlmAsrCausalLMOutputWithPast`]

        Raises:
            `ValueError`: If audio tokens and recordings do not match, or a row of `labels` has no target.
        """
        has_audio = input_features is not None or audio_hidden_states is not None
        if labels is not None:
            if has_audio:
                target_lengths = self._resolve_target_lengths(
                    labels, target_lengths, input_features if audio_hidden_states is None else audio_hidden_states
                )
            # A cache would only be thrown away.
            use_cache = False if use_cache is None else use_cache

        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            audio_hidden_states=audio_hidden_states,
            audio_hidden_states_mask=audio_hidden_states_mask,
            target_lengths=target_lengths,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        audio = LlmAsrAudioOutput() if outputs.audio_outputs is None else outputs.audio_outputs
        skip_logits = labels is not None and (self.training if skip_logits is None else skip_logits)
        logits = None if skip_logits else self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))

        losses = {}
        if labels is not None:
            answers = labels if outputs.merged_inputs is None else outputs.merged_inputs.spread(labels)
            # A position predicts the next one.
            shift_labels = nn.functional.pad(answers[:, 1:], (0, 1), value=-100)
            scored = logits
            if skip_logits:
                is_target = shift_labels != -100
                scored, shift_labels = self.lm_head(hidden_states[is_target]), shift_labels[is_target]
            losses["lm_loss"] = self.loss_function(
                logits=scored,
                labels=None,
                shift_labels=shift_labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
            losses.update(self._projector_losses(audio, labels, target_lengths, num_items_in_batch))
            losses["loss"] = self._weighted_sum(losses)

        return LlmAsrCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=audio.router_logits,
            selected_experts=audio.selected_experts,
            audio_embeds=audio.pooler_output,
            audio_lengths=audio.audio_lengths,
            alphas=audio.alphas,
            quantities=audio.quantities,
            fire_times=audio.fire_times,
            **losses,
        )

    def _resolve_target_lengths(
        self, labels: torch.Tensor, target_lengths: torch.Tensor | None, recordings: torch.Tensor
    ) -> torch.Tensor:
        """`target_lengths` as given, or counted from `labels`, after checking that every row has a target."""
        is_target = labels != -100
        empty = (~is_target.any(-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"`labels` has no target in row(s) {empty}; give each row a transcript (an empty one still ends with the "
                "end-of-sequence token)."
            )
        if target_lengths is not None:
            return target_lengths
        if recordings.shape[0] != labels.shape[0]:
            raise ValueError(
                f"`target_lengths` must be passed when rows hold several recordings ({recordings.shape[0]} recordings in "
                f"{labels.shape[0]} rows)."
            )
        return (is_target & ~torch.isin(labels, self._eos_token_ids(labels.device))).sum(-1)

    def _eos_token_ids(self, device: torch.device) -> torch.Tensor:
        token_ids = self.generation_config.eos_token_id
        return torch.tensor([] if token_ids is None else token_ids, dtype=torch.long, device=device).flatten()

    def _projector_losses(
        self,
        audio: LlmAsrAudioOutput,
        labels: torch.Tensor,
        target_lengths: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """The parts of the loss beside the language modelling loss, normalised like it."""
        losses = {}
        num_labels = (labels != -100).sum()
        num_items = num_labels if num_items_in_batch is None else num_items_in_batch
        if audio.quantities is not None:
            losses["quantity_loss"] = quantity_loss(audio.quantities, target_lengths, num_items)
        if self.draft_head is not None and audio.pooler_output is not None:
            drafts = self.draft(audio.pooler_output, audio.audio_lengths)
            tokens = draft_labels(labels, self._eos_token_ids(labels.device), target_lengths)
            losses["draft_loss"] = nn.functional.cross_entropy(drafts.float(), tokens, reduction="sum") / num_items
        if audio.router_logits is not None:
            losses["router_aux_loss"], losses["router_z_loss"] = self.model.projector.moe.balance(
                audio.router_logits, audio.selected_experts, num_labels, num_items_in_batch
            )
        return losses

    def draft(self, audio_embeds: torch.Tensor, audio_lengths: torch.Tensor) -> torch.Tensor:
        """
        Draft transcripts without the language model's layers; for models with `draft_head=True`.

        Args:
            audio_embeds (`torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`): Packed embeddings.
            audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.

        Returns:
            `torch.Tensor` of shape `(sum(audio_lengths), vocab_size)`: Logits of one token for each embedding.
        """
        return self.lm_head(self.draft_head(audio_embeds.to(self.draft_head.up_proj.weight.dtype), audio_lengths))

    def _weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        coefficients = {
            "lm_loss": 1.0,
            "quantity_loss": self.config.projector_config.quantity_loss_coef,
            "draft_loss": self.config.projector_config.draft_loss_coef,
            "router_aux_loss": self.config.projector_config.router_aux_loss_coef,
            "router_z_loss": self.config.projector_config.router_z_loss_coef,
        }
        return sum(coefficients[name] * loss for name, loss in losses.items())


def _all_eos_token_ids(tokenizer, text_generation_config: GenerationConfig) -> int | list[int]:
    """The tokenizer's end token, which training targets end with, and whatever else ends the text model's turns."""
    others = text_generation_config.eos_token_id
    others = others if isinstance(others, list) else [others]
    token_ids = list(dict.fromkeys([tokenizer.eos_token_id, *(other for other in others if other is not None)]))
    return token_ids[0] if len(token_ids) == 1 else token_ids


@torch.no_grad()
def _make_room(text_model: PreTrainedModel, audio_token_id: int) -> None:
    """
    Give the audio token a row in the embedding and the head: the mean of the others, so that it is always the same, and is
    never the likeliest token either.
    """
    num_embeddings = text_model.get_input_embeddings().num_embeddings
    if audio_token_id < num_embeddings:
        return
    text_model.resize_token_embeddings(audio_token_id + 1, mean_resizing=False)
    for layer in (text_model.get_input_embeddings(), text_model.get_output_embeddings()):
        layer.weight[num_embeddings:] = layer.weight[:num_embeddings].mean(0)


@torch.no_grad()
def _check_plain_head(text_model: PreTrainedModel) -> None:
    """Refuse a language model whose logits are more than a bias-free linear map of its last hidden state."""
    head = text_model.get_output_embeddings()
    input_ids = torch.arange(4, device=text_model.device)[None] % text_model.config.vocab_size
    hidden_states = []
    hook = text_model.base_model.register_forward_hook(lambda module, args, output: hidden_states.append(output[0]))
    was_training = text_model.training
    text_model.eval()
    logits = text_model(input_ids=input_ids, use_cache=False).logits
    text_model.train(was_training)
    hook.remove()
    is_plain = isinstance(head, nn.Linear) and head.bias is None
    # The same operations on the same numbers: a cap or a scale shows as the slightest difference.
    if not is_plain or not torch.equal(head(hidden_states[0]), logits):
        raise ValueError(
            f"`text` is a {type(text_model).__name__}, whose logits are not a bias-free linear map of its hidden states "
            "(it scales, caps or shifts them); choose a language model with a plain head."
        )


# The stock ASR pipeline and the `Auto` classes know a seq2seq speech model by its name in this mapping.
MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES["llm_asr"] = "LlmAsrForConditionalGeneration"


__all__ = [
    "LlmAsrAudioOutput",
    "LlmAsrCausalLMOutputWithPast",
    "LlmAsrForConditionalGeneration",
    "LlmAsrModel",
    "LlmAsrModelOutputWithPast",
    "LlmAsrPreTrainedModel",
]
