"""`generate()`: recordings are merged into their prompts once, and decoding is kept within what they can hold."""

from dataclasses import dataclass

import torch
from transformers.generation import GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.utils import ModelOutput

from .decoding_guards import AudioLengthCriteria, Confidence, Fallback, compression_ratio, length_limits
from .draft_head import DraftCandidateGenerator
from .merging import find_audio_runs


@dataclass
class MergedPrompt:
    """
    Prompts with their audio, ready to be continued.

    Attributes:
        inputs_embeds (`torch.Tensor` of shape `(batch_size, merged_length, hidden_size)`): Padded on the left.
        attention_mask (`torch.LongTensor` of shape `(batch_size, merged_length)`): One for text and audio.
        input_ids (`torch.LongTensor` of shape `(batch_size, merged_length)`, *optional*): Where the prompt had as many
            tokens from the start.
        max_new_tokens (`torch.LongTensor` of shape `(batch_size,)`, *optional*): What each recording may have.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    input_ids: torch.Tensor | None
    max_new_tokens: torch.Tensor | None

    def __getitem__(self, rows: torch.Tensor) -> "MergedPrompt":
        parts = (self.inputs_embeds, self.attention_mask, self.input_ids, self.max_new_tokens)
        return MergedPrompt(*(None if part is None else part[rows] for part in parts))

    @property
    def num_input_ids(self) -> int:
        """Tokens that `generate` will return before the new ones."""
        return 0 if self.input_ids is None else self.input_ids.shape[1]


class LlmAsrGenerationMixin(GenerationMixin):
    """Of [`LlmAsrForConditionalGeneration`]."""

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        target_lengths: torch.LongTensor | None = None,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        output_confidence: bool = False,
        use_draft: bool = False,
        **kwargs,
    ):
        r"""
        Transcribe recordings. All arguments of [`~generation.GenerationMixin.generate`] are accepted.

        Unless `max_new_tokens` or `max_length` is passed, each recording may have
        `generation_config.max_new_tokens_per_second` tokens a second, and 16 more.

        Args:
            input_features, input_features_mask, audio_hidden_states, audio_hidden_states_mask (`torch.Tensor`, *optional*):
                See [`LlmAsrForConditionalGeneration.forward`].
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Prompts with an audio token for each recording, padded on either side. Without them every recording is
                given `generation_config.transcription_prompt_ids`.
            attention_mask (`torch.Tensor`, *optional*):
                Non-zero for real tokens of `input_ids`; without `input_ids`, taken for `input_features_mask`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets to cut off from `input_ids`, so that a training batch can be passed as it is.
            target_lengths (`torch.LongTensor`, *optional*):
                Ignored: how many tokens there are is for the model to find out.
            compression_ratio_threshold, logprob_threshold, no_speech_threshold (`float`, *optional*):
                With several values of `temperature`: when the next is tried; see [`Fallback`].
            output_confidence (`bool`, *optional*, defaults to `False`):
                Whether to return `avg_logprobs` and `no_speech_probs`, of shape `(batch_size,)`; see [`Confidence`]. Needs
                `return_dict_in_generate=True`, and another forward pass.
            use_draft (`bool`, *optional*, defaults to `False`):
                Whether the language model verifies the draft of the draft head rather than writing token by token
                (self-speculative decoding, arXiv 2603.11243). Only what it would have written itself is accepted, so
                greedy output is the same. One recording at a time, as in all assisted generation.

        Returns:
            [`~utils.ModelOutput`] or `torch.LongTensor`: The new tokens alone, or, if `input_ids` has a run of several
            audio tokens for each recording, the prompt and the new tokens. With `return_dict_in_generate=True`, also the
            recordings' `audio_lengths`, `alphas` and `fire_times`, as in [`LlmAsrAudioOutput`].

        Raises:
            `ValueError`: If prompts and recordings do not match, or options contradict each other.
        """
        if input_features is None and audio_hidden_states is None:
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        fallback = None
        if isinstance(kwargs.get("temperature"), (list, tuple)):
            temperatures = list(kwargs.pop("temperature"))
            fallback = Fallback(temperatures, compression_ratio_threshold, logprob_threshold, no_speech_threshold)
        elif (compression_ratio_threshold, logprob_threshold, no_speech_threshold) != (None, None, None):
            raise ValueError(
                "`temperature` must list what to try when a threshold is missed, such as [0.0, 0.4, 0.8]."
            )
        returns_dict = self._option("return_dict_in_generate", kwargs)
        if output_confidence and not returns_dict:
            raise ValueError("`output_confidence` needs `return_dict_in_generate=True`.")
        if use_draft and self._option("num_beams", kwargs) not in (None, 1):
            raise ValueError("`num_beams` must be 1 with `use_draft`.")
        one_each = use_draft or output_confidence or fallback is not None
        if one_each and self._option("num_return_sequences", kwargs) not in (None, 1):
            raise ValueError(
                "`num_return_sequences` must be 1 with `use_draft`, `output_confidence` or several temperatures."
            )

        recordings = input_features if audio_hidden_states is None else audio_hidden_states
        if input_ids is None:
            if input_features_mask is None and audio_hidden_states is None:
                input_features_mask = attention_mask
            input_ids = self._default_prompt(kwargs, recordings)
            attention_mask = None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if labels is not None:
            attention_mask = attention_mask * (labels == -100)
        if use_draft and (self.draft_head is None or len(input_ids) > 1):
            raise ValueError(
                "`use_draft` needs a model with `draft_head=True` in its projector configuration, and one recording at a "
                f"time; this model's is {self.config.projector_config.draft_head}, and there are {len(input_ids)}."
            )

        was_expanded = int((input_ids == self.config.audio_token_id).sum()) != recordings.shape[0]
        if was_expanded:
            # Filled in place, so that the new tokens follow the prompt only if nothing else does.
            order = attention_mask.bool().long().argsort(dim=-1, stable=True)
            attention_mask = attention_mask.gather(1, order)
            input_ids = input_ids.gather(1, order).masked_fill(attention_mask == 0, self.config.pad_token_id or 0)
        merged_inputs, audio_outputs = self.model.merge_audio_and_text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_hidden_states=audio_hidden_states,
            audio_hidden_states_mask=audio_hidden_states_mask,
            padding_side="left",
        )
        prompt = MergedPrompt(
            inputs_embeds=merged_inputs.inputs_embeds,
            attention_mask=merged_inputs.attention_mask,
            # Who expanded the prompt expects it back, as other audio models return it.
            input_ids=input_ids if was_expanded else None,
            max_new_tokens=self._max_new_tokens(input_ids, attention_mask, audio_outputs.num_frames, kwargs),
        )
        draft_ids = None
        if use_draft:
            drafts = self.draft(audio_outputs.pooler_output, audio_outputs.audio_lengths)
            draft_ids = torch.cat([drafts.argmax(-1), self._eos_token_ids(drafts.device)[:1]])

        if fallback is None:
            outputs = self._decode(prompt, draft_ids, **kwargs)
        else:
            outputs = self._decode_with_fallback(prompt, draft_ids, fallback, **kwargs)
        if not returns_dict:
            return outputs.sequences if isinstance(outputs, ModelOutput) else outputs
        if output_confidence and fallback is None:
            confidence = self._confidence(prompt, outputs.sequences[:, prompt.num_input_ids :])
            outputs["avg_logprobs"], outputs["no_speech_probs"] = confidence.avg_logprobs, confidence.no_speech_probs
        for name in ("audio_lengths", "alphas", "fire_times"):
            outputs[name] = audio_outputs.get(name)
        return outputs

    def _option(self, name: str, kwargs: dict):
        """A generation option, from the call, the generation configuration it passes, or the model's own."""
        if name in kwargs:
            return kwargs[name]
        for config in (kwargs.get("generation_config"), self.generation_config):
            value = getattr(config, name, None)
            if value is not None:
                return value
        return None

    def _default_prompt(self, kwargs: dict, recordings: torch.Tensor) -> torch.Tensor:
        prompt_ids = self._option("transcription_prompt_ids", kwargs)
        if prompt_ids is None:
            raise ValueError(
                "`input_ids` must be passed: this model's `generation_config` has no `transcription_prompt_ids`. Make "
                "them with `processor.apply_transcription_request`, or set `transcription_prompt_ids` to "
                "`processor.transcription_prompt_ids`."
            )
        return torch.tensor(prompt_ids, device=recordings.device).expand(recordings.shape[0], -1)

    def _max_new_tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_frames: torch.Tensor, kwargs: dict
    ) -> torch.Tensor | None:
        """What the recordings of each row may have, of shape `(batch_size,)`, unless the caller has set a length."""
        per_second = self._option("max_new_tokens_per_second", kwargs)
        if per_second is None or "max_new_tokens" in kwargs or "max_length" in kwargs:
            return None
        audio_runs = find_audio_runs(input_ids, attention_mask, self.config.audio_token_id, len(num_frames))
        frames = num_frames.new_zeros(len(input_ids)).index_add(0, audio_runs.rows, num_frames)
        max_new_tokens = self._option("max_new_tokens", kwargs)
        return length_limits(frames, self.config.audio_frame_rate, per_second, max_new_tokens)

    def _decode(self, prompt: MergedPrompt, draft_ids: torch.Tensor | None, **kwargs) -> ModelOutput | torch.Tensor:
        input_ids, length = prompt.input_ids, prompt.inputs_embeds.shape[1]
        if draft_ids is not None:
            kwargs |= {"draft_ids": draft_ids, "prompt_lookup_num_tokens": len(draft_ids)}
            if input_ids is None:
                # Assisted generation counts on tokens for all of the prompt. The model never writes an audio token, so
                # that no processor of its logits takes it for a repetition.
                input_ids = torch.full((1, length), self.config.audio_token_id, device=prompt.inputs_embeds.device)
        if prompt.max_new_tokens is not None:
            criteria = AudioLengthCriteria(prompt.max_new_tokens, 0 if input_ids is None else length)
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), criteria])
            kwargs["max_new_tokens"] = int(prompt.max_new_tokens.max())
        outputs = super().generate(
            input_ids, inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **kwargs
        )
        if prompt.input_ids is not None or input_ids is None:
            return outputs
        if not isinstance(outputs, ModelOutput):
            return outputs[:, length:]
        outputs.sequences = outputs.sequences[:, length:]
        return outputs

    def _decode_with_fallback(
        self, prompt: MergedPrompt, draft_ids: torch.Tensor | None, fallback: Fallback, **kwargs
    ) -> ModelOutput:
        """Each row at the first temperature that gives nothing to doubt, or at the last."""
        batch_size, device = len(prompt.inputs_embeds), prompt.inputs_embeds.device
        vocab_size = self.config.text_config.vocab_size
        pending = torch.arange(batch_size, device=device)
        sequences: list[torch.Tensor] = [torch.empty(0)] * batch_size
        measures = torch.empty(4, batch_size, device=device)
        for temperature in fallback.temperatures:
            rows = prompt[pending]
            options = {**kwargs, "do_sample": temperature > 0, "return_dict_in_generate": False}
            if temperature > 0:
                options |= {"temperature": temperature, "num_beams": 1}
            found = self._decode(rows, None if temperature > 0 else draft_ids, **options)
            tokens = found[:, rows.num_input_ids :]
            confidence = self._confidence(rows, tokens)
            written = self._is_written(tokens, rows.max_new_tokens)
            ratios = [
                compression_ratio(row[kept].tolist(), vocab_size) for row, kept in zip(tokens, written, strict=True)
            ]
            ratios = torch.tensor(ratios, device=device)
            silent = fallback.is_silent(confidence)
            if silent.any():
                tokens[silent] = self._eos_token_ids(device)[0]
            for row, index in enumerate(pending.tolist()):
                sequences[index] = found[row]
            used = torch.full_like(ratios, temperature)
            measures[:, pending] = torch.stack([confidence.avg_logprobs, confidence.no_speech_probs, ratios, used])
            pending = pending[fallback.is_doubtful(confidence, ratios)]
            if not len(pending):
                break
        names = ("avg_logprobs", "no_speech_probs", "compression_ratios", "temperatures")
        padded = torch.nn.utils.rnn.pad_sequence(
            sequences, batch_first=True, padding_value=self._option("pad_token_id", kwargs) or 0
        )
        return ModelOutput(sequences=padded, **dict(zip(names, measures, strict=True)))

    def _is_written(self, tokens: torch.Tensor, max_new_tokens: torch.Tensor | None) -> torch.Tensor:
        """True for new tokens up to the end of the sequence, the end itself among them: shape `(batch_size, length)`."""
        is_end = torch.isin(tokens, self._eos_token_ids(tokens.device)).long()
        written = is_end.cumsum(-1) - is_end == 0
        if max_new_tokens is None:
            return written
        return written & (torch.arange(tokens.shape[1], device=tokens.device) < max_new_tokens[:, None])

    def _confidence(self, prompt: MergedPrompt, tokens: torch.Tensor) -> Confidence:
        """See [`Confidence`]; `tokens` are the new ones, of shape `(batch_size, length)`."""
        written = self._is_written(tokens, prompt.max_new_tokens)
        attention_mask = torch.cat([prompt.attention_mask, written.long()], dim=-1)
        hidden_states = self.model(
            inputs_embeds=torch.cat([prompt.inputs_embeds, self.get_input_embeddings()(tokens)], dim=1),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state[:, prompt.inputs_embeds.shape[1] - 1 : -1]
        averages, silences = [], []
        # Row by row: logits of all rows at once may be larger than the model.
        for row, row_tokens, row_written in zip(hidden_states, tokens, written, strict=True):
            logprobs = self.lm_head(row).float().log_softmax(-1)
            averages.append(logprobs.gather(-1, row_tokens[:, None])[row_written].mean())
            silences.append(logprobs[0, self._eos_token_ids(tokens.device)].exp().sum())
        return Confidence(avg_logprobs=torch.stack(averages), no_speech_probs=torch.stack(silences))

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, is_first_iteration=False, draft_ids=None, **kwargs
    ):
        if draft_ids is not None and is_first_iteration:
            # The draft goes through the language model together with the prompt.
            drafted = self.get_input_embeddings()(input_ids[:, inputs_embeds.shape[1] :])
            inputs_embeds = torch.cat([inputs_embeds, drafted], dim=1)
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )

    def _get_candidate_generator(self, generation_config: GenerationConfig, input_ids, model_kwargs, **kwargs):
        if "draft_ids" in model_kwargs:
            return DraftCandidateGenerator(model_kwargs["draft_ids"], prompt_length=input_ids.shape[1])
        return super()._get_candidate_generator(
            generation_config=generation_config, input_ids=input_ids, model_kwargs=model_kwargs, **kwargs
        )

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        # `main_input_name` is the audio, which `generate` has merged by now: what is left is a plain decoder's input.
        model_kwargs.pop("input_features", None)
        input_ids = self._maybe_initialize_input_ids_for_generation(inputs, bos_token_id, model_kwargs)
        if model_kwargs.get("inputs_embeds") is None:
            return input_ids, "input_ids", model_kwargs
        model_kwargs["input_ids"] = input_ids
        return model_kwargs["inputs_embeds"], "inputs_embeds", model_kwargs


__all__ = ["LlmAsrGenerationMixin"]
