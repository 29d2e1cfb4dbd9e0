"""Speech encoder → projector → causal language model."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.utils import can_return_tuple, logging

from .audio_llm_asr import LlmAsrAudioMixin, is_frozen
from .batch_numbers import BatchNumbers, read_batch_numbers, select
from .composition_llm_asr import LlmAsrCompositionMixin
from .configuration_llm_asr import LlmAsrConfig
from .conversion_llm_asr import LlmAsrConversionMixin
from .draft_head import DraftHead
from .generation_llm_asr import LlmAsrGenerationMixin
from .initialization import init_projector_module
from .language_model_head import LanguageModelHead, LlmAsrHeadMixin
from .loading_llm_asr import LlmAsrLoadingMixin
from .losses_llm_asr import LlmAsrLossMixin, language_modeling_loss, resolve_target_lengths, weighted_sum
from .merging import MergedInputs, find_audio_runs, merge_audio
from .outputs_llm_asr import LlmAsrAudioOutput, LlmAsrCausalLMOutputWithPast, LlmAsrModelOutputWithPast
from .part_dtypes import HALF_DTYPES, default_dtype
from .projector_llm_asr import build_projector
from .quantization import quantize_language_model_alone
from .speech_encoders import build_audio_tower, check_audio_config
from .streaming_audio import LlmAsrStreamingMixin
from .transformers_versions import CACHE_NAME, slice_logits_to_keep


logger = logging.get_logger(__name__)


class LlmAsrPreTrainedModel(LlmAsrLoadingMixin, PreTrainedModel):
    config: LlmAsrConfig
    config_class: type[LlmAsrConfig] = LlmAsrConfig
    base_model_prefix = "model"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: LlmAsrConfig):
        for part, dtype in (config.part_dtypes or {}).items():
            getattr(config, part).dtype = dtype
        super().__init__(config)

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
        if module is not self.get_output_embeddings():
            init_projector_module(module, self.config.projector_config.initializer_range)

    def _replicate_for_data_parallel(self):
        # `nn.DataParallel` calls this for each GPU. It discards the buffers of replicas, and routers write to buffers.
        raise RuntimeError(
            "`nn.DataParallel` loses the state of routers, and a `Trainer` uses it on a machine with several GPUs unless each "
            "has a process of its own: start the program with `torchrun --nproc_per_node NUM_GPUS`, or set "
            "CUDA_VISIBLE_DEVICES to one of them."
        )

    def cast_trainable_to_float32(self) -> None:
        """
        Cast the parameters that require gradients, and are in half precision, to float32.

        Optimizers lose small updates in bfloat16, and in float16 their squares of gradients vanish. Train in float32, and
        pass `bf16=True` or `fp16=True` to the `Trainer`, which then computes in half precision by autocast. Call this
        before the optimizer is made.
        """
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.dtype in HALF_DTYPES:
                parameter.data = parameter.data.float()


class LlmAsrModel(LlmAsrAudioMixin, LlmAsrStreamingMixin, LlmAsrPreTrainedModel):
    """
    The speech encoder, the projector and the language model, without a language modelling head.

    Args:
        config ([`LlmAsrConfig`]): Configuration.
        audio_tower (`PreTrainedModel`, *optional*): A loaded speech encoder; built with random weights if absent.
        language_model (`PreTrainedModel`, *optional*): A loaded headless language model; built with random weights if
            absent.

    A part that is built here has the dtype of its sub-configuration, or PyTorch's default dtype.
    """

    def __init__(
        self,
        config: LlmAsrConfig,
        audio_tower: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        with default_dtype(config.audio_config.dtype):
            self.audio_tower = build_audio_tower(config.audio_config) if audio_tower is None else audio_tower
        with default_dtype(config.projector_config.dtype):
            self.projector = build_projector(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config).base_model
        self.language_model = language_model
        if "projector.moe.balance.e_score_correction_bias" in dict(self.named_buffers()):
            # The updates of the bias are too small for half precision.
            self._keep_in_fp32_modules_strict = ["e_score_correction_bias"]
        self.post_init()

    def train(self, mode: bool = True) -> "LlmAsrModel":
        """Like `nn.Module.train`, but frozen parts stay in eval mode, because dropout there only adds noise."""
        super().train(mode)
        if mode and any(parameter.requires_grad and parameter.dtype in HALF_DTYPES for parameter in self.parameters()):
            logger.warning_once(
                "Some trained parameters are in half precision, in which an optimizer loses small updates and float16 may "
                "become NaN. Call `model.cast_trainable_to_float32()` before you make the `Trainer`, and pass it `bf16=True` or "
                "`fp16=True` to compute in half precision."
            )
        if is_frozen(self.audio_tower):
            self.audio_tower.eval()
        if is_frozen(self.language_model):
            self.language_model.eval()
            # Gradients pass through a frozen language model, and Transformers saves their memory only where a layer
            # itself is in train mode; the dropout is in the modules below it.
            if any(getattr(module, "gradient_checkpointing", False) for module in self.language_model.modules()):
                for module in self.language_model.modules():
                    if isinstance(module, GradientCheckpointingLayer):
                        module.training = mode
        return self

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Find the audio tokens of a batch.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embedded tokens, in place of `input_ids`: the audio token is known by its embedding.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, sequence_length)`.
        """
        if input_ids is not None:
            return input_ids == self.config.audio_token_id
        if inputs_embeds is None:
            raise ValueError("Pass `input_ids` or `inputs_embeds`: they say where the audio goes.")
        token = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token).to(inputs_embeds.device)).all(-1)

    def merge_audio_and_text(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        padding_side: str = "right",
        numbers: BatchNumbers | None = None,
        **kwargs,
    ) -> tuple[MergedInputs, LlmAsrAudioOutput]:
        """
        Embed `input_ids` and put each recording in the place of its audio token.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens with one audio token, or one run of audio tokens, for each recording. A run says how many
                embeddings its recording gets: CIF fires as many, a fixed-rate projector must agree.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embedded tokens. Without `input_ids`, the audio token is known by its embedding.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Non-zero for real tokens; all are real if absent.
            padding_side (`str`, *optional*, defaults to `"right"`):
                Side on which the merged rows are padded.
            numbers ([`BatchNumbers`], *optional*):
                Of the batch; read from the device if absent.
            input_features, audio_hidden_states, target_lengths, kwargs:
                See [`LlmAsrModel.get_audio_features`].

        Raises:
            `ValueError`: If audio tokens and recordings, or their lengths, do not match.
        """
        is_audio = self.get_placeholder_mask(input_ids, inputs_embeds)
        if attention_mask is None:
            attention_mask = is_audio.new_ones(is_audio.shape, dtype=torch.long)
        recordings = input_features if audio_hidden_states is None else audio_hidden_states
        if recordings is None:
            raise ValueError("Pass either `input_features` or `audio_hidden_states`, and not both.")
        if numbers is None:
            masks = [kwargs.get(f"{name}_mask") for name in ("input_features", "audio_hidden_states")]
            numbers = read_batch_numbers(is_audio, attention_mask, *masks)
        audio_runs = find_audio_runs(is_audio, recordings.shape[0], numbers)
        if audio_runs.lengths is not None:
            target_lengths = audio_runs.lengths
            numbers = replace(numbers, target_lengths=None)
        audio_outputs: Any
        audio_outputs, audio_counts = self.encode_and_project(
            input_features=input_features,
            audio_hidden_states=audio_hidden_states,
            target_lengths=target_lengths,
            numbers=numbers,
            **kwargs,
        )
        merged_inputs = merge_audio(
            self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds,
            attention_mask,
            audio_runs,
            audio_outputs.pooler_output,
            audio_outputs.audio_lengths,
            padding_side,
            audio_counts,
            numbers,
        )
        return merged_inputs, audio_outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        cache: Cache | None = None,
        numbers: BatchNumbers | None = None,
        **kwargs: Any,
    ) -> LlmAsrModelOutputWithPast:
        """See [`LlmAsrForConditionalGeneration.forward`]."""
        merged_inputs = audio_outputs = None
        if input_features is not None or audio_hidden_states is not None:
            if input_ids is None and inputs_embeds is None:
                raise ValueError(
                    "`input_ids` or `inputs_embeds` must be passed with audio: they say where the audio goes."
                )
            merged_inputs, audio_outputs = self.merge_audio_and_text(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                input_features=input_features,
                input_features_mask=input_features_mask,
                audio_hidden_states=audio_hidden_states,
                audio_hidden_states_mask=audio_hidden_states_mask,
                target_lengths=target_lengths,
                numbers=numbers,
            )
            inputs_embeds = merged_inputs.inputs_embeds
            attention_mask = merged_inputs.attention_mask
            position_ids = merged_inputs.position_ids
            recordings: Any = input_features if audio_hidden_states is None else audio_hidden_states
            grows = numbers is not None and sum(numbers.audio_tokens) == len(recordings)
            if grows and numbers is not None and not numbers.num_hidden and not use_cache:
                # Padding is on the right, so no real token attends to it. With a mask, Transformers would wait for the device
                # to see whether there is any padding.
                attention_mask = position_ids = None
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            return_dict=True,
            **{CACHE_NAME: cache if past_key_values is None else past_key_values},
            **kwargs,
        )
        return LlmAsrModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_outputs=audio_outputs,
            merged_inputs=merged_inputs,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )


class LlmAsrForConditionalGeneration(
    LlmAsrPreTrainedModel,
    LlmAsrCompositionMixin,
    LlmAsrConversionMixin,
    LlmAsrHeadMixin,
    LlmAsrLossMixin,
    LlmAsrGenerationMixin,
):
    """
    Speech recognition with a speech encoder, a projector and a causal language model with its head.

    Args:
        config ([`LlmAsrConfig`]): Configuration.
        audio_tower (`PreTrainedModel`, *optional*): A loaded speech encoder; built with random weights if absent.
        text_model (`PreTrainedModel`, *optional*): A loaded causal language model with its head; built with random
            weights if absent.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Filled in for each instance, because the embedding has another name in every language model.
    _tied_weights_keys = {}

    def __init__(
        self,
        config: LlmAsrConfig,
        audio_tower: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        check_audio_config(config.audio_config)  # before the language model takes memory
        if text_model is None:
            text_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model_head = LanguageModelHead(config.text_config)
        language_model: Any = text_model.base_model
        self.model = LlmAsrModel(config, audio_tower, language_model)
        self.lm_head = text_model.get_output_embeddings()
        with default_dtype(config.projector_config.dtype):
            self.draft_head = DraftHead(config) if config.projector_config.draft_head else None
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    def get_audio_features(self, *args, **kwargs) -> LlmAsrAudioOutput:
        """See [`LlmAsrModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def transcribe_ctc(self, *args, **kwargs) -> list[torch.Tensor]:
        """See [`LlmAsrAudioMixin.transcribe_ctc`]."""
        return self.model.transcribe_ctc(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        # Not `label_...`: the `Trainer` takes every such argument for labels.
        lm_loss_smoothing: float = 0.0,
        draft_only: bool = False,
        is_translation: torch.Tensor | None = None,
        cache: Cache | None = None,
        numbers: BatchNumbers | None = None,
        **kwargs: Any,
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
                Tokens of each transcript, which CIF is to fire and to predict; negative where they are unknown. Defaults to
                the number of labels of each row that are not an end-of-sequence token, and to -1 for translations.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels in the whole optimizer step, over gradient accumulation and processes, as the `Trainer`
                passes it. Every part of the loss is normalised by it.
            skip_logits (`bool`, *optional*):
                Whether the head runs only where there are labels, and `logits` are left out of the output: prompts and
                audio are most of a batch, and a vocabulary may be larger than all else. Defaults to `True` in training.
            lm_loss_smoothing (`float`, *optional*, defaults to 0.0):
                Label smoothing: share of each label's probability that `lm_loss` deals out to all tokens (arXiv 1512.00567,
                section 7).
            draft_only (`bool`, *optional*, defaults to `False`):
                Whether the layers of the language model are left out, for a first stage of training: the loss is that of
                the draft and the projector alone, and there are no `logits`. Needs `draft_head=True` in the projector
                configuration.
            is_translation (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                Rows whose labels are a translation. They have no draft loss.
            cache (`Cache`, *optional*):
                `past_key_values`, by their name from Transformers 5.24 on.
            numbers ([`BatchNumbers`], *optional*):
                Whole numbers of a batch with labels and audio, as [`LlmAsrDataCollator`] counts them. They are not checked. If
                absent, they are read from the device, which the host waits for.

        Returns:
            [`LlmAsrCausalLMOutputWithPast`]

        Raises:
            `ValueError`: If audio tokens and recordings do not match, a row of `labels` has no target, or `draft_only` is
                set without a draft head, labels or audio.
        """
        recordings = input_features if audio_hidden_states is None else audio_hidden_states
        if self.training and labels is None and target_lengths is not None:
            raise ValueError(
                "`target_lengths` came without `labels`, so that most of the loss would be missing. A plain `Trainer` takes "
                "labels out for `label_smoothing_factor` and `compute_loss_func`; train with `LlmAsrTrainer`."
            )
        if labels is None or recordings is None:
            numbers = None
        else:
            if numbers is None:
                has_prompt = input_ids is not None or inputs_embeds is not None
                numbers = read_batch_numbers(
                    self.model.get_placeholder_mask(input_ids, inputs_embeds)
                    if has_prompt
                    else torch.zeros_like(labels, dtype=torch.bool),
                    attention_mask,
                    input_features_mask,
                    audio_hidden_states_mask,
                    labels,
                    self._eos_ids(),
                    target_lengths,
                    is_translation,
                )
            target_lengths = resolve_target_lengths(
                labels, target_lengths, len(recordings), self._eos_ids(), is_translation, numbers
            )
        if draft_only:
            return self._forward_draft_only(
                labels,
                target_lengths,
                num_items_in_batch,
                is_translation,
                numbers,
                input_features=input_features,
                input_features_mask=input_features_mask,
                audio_hidden_states=audio_hidden_states,
                audio_hidden_states_mask=audio_hidden_states_mask,
            )
        if labels is not None:
            # A pass with labels generates no tokens, so it needs no cache.
            use_cache = False if use_cache is None else use_cache

        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            audio_hidden_states=audio_hidden_states,
            audio_hidden_states_mask=audio_hidden_states_mask,
            target_lengths=target_lengths,
            numbers=numbers,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if outputs.merged_inputs is not None:
            hidden_states = outputs.merged_inputs.at_tokens(hidden_states)
        audio = LlmAsrAudioOutput() if outputs.audio_outputs is None else outputs.audio_outputs
        skip_logits = labels is not None and (self.training if skip_logits is None else skip_logits)
        logits = None if skip_logits else self.get_logits(slice_logits_to_keep(hidden_states, logits_to_keep))

        losses: dict[str, Any] = {}
        if labels is not None:
            targets = labels if outputs.merged_inputs is None else outputs.merged_inputs.mask_labels(labels)
            # A position predicts the next one.
            shift_labels = nn.functional.pad(targets[:, 1:], (0, 1), value=-100).to(hidden_states.device)
            if logits is None:
                is_target = shift_labels != -100
                num_scored = int(is_target.sum()) if numbers is None else numbers.num_scored
                scored = self.get_logits(select(hidden_states, is_target, num_scored))
                shift_labels = select(shift_labels, is_target, num_scored)
            else:
                scored = logits
            losses["lm_loss"] = language_modeling_loss(
                self.loss_function, scored, shift_labels.to(scored.device), lm_loss_smoothing, num_items_in_batch
            )
            losses.update(
                self._projector_losses(audio, labels, target_lengths, num_items_in_batch, is_translation, numbers)
            )
            losses["loss"] = weighted_sum(losses, self.config.projector_config)

        return LlmAsrCausalLMOutputWithPast(
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=audio.router_logits,
            selected_experts=audio.selected_experts,
            audio_embeds=audio.pooler_output,
            audio_lengths=audio.audio_lengths,
            alphas=audio.alphas,
            quantities=audio.quantities,
            fire_times=audio.fire_times,
            ctc_labels=audio.ctc_labels,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            **losses,
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
