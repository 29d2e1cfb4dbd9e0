"""`generate()`: merges recordings into their prompts once, and limits the length of transcripts by their duration."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.generation import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput

from .batch_numbers import BatchNumbers
from .decoding_guards import AudioLengthCriteria, Confidence, Fallback, compression_ratio, length_limits
from .draft_decoding import (
    ON_REQUEST,
    decode_with_drafts,
    find_unsupported,
    has_attention_alone,
    join_drafts,
    split_drafts,
)
from .generation_settings import check_tokens_per_second
from .merging import find_audio_runs, merge_audio
from .model_interface import HeadedModelInterface
from .outputs_llm_asr import LlmAsrAudioOutput
from .token_logprobs import TokenLogprobs
from .transformers_versions import CACHE_NAME


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
        return MergedPrompt(
            inputs_embeds=self.inputs_embeds[rows],
            attention_mask=self.attention_mask[rows],
            input_ids=None if self.input_ids is None else self.input_ids[rows],
            max_new_tokens=None if self.max_new_tokens is None else self.max_new_tokens[rows],
        )

    @property
    def num_input_ids(self) -> int:
        """Tokens that `generate` will return before the new ones."""
        return 0 if self.input_ids is None else self.input_ids.shape[1]


class LlmAsrGenerationMixin(GenerationMixin, HeadedModelInterface):
    """Adds `generate` to [`LlmAsrForConditionalGeneration`]."""

    # Like other audio models of Transformers, the model has parameters of its own in `generate`.
    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        audio_outputs: LlmAsrAudioOutput | None = None,
        labels: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        is_translation: torch.Tensor | None = None,
        numbers: BatchNumbers | None = None,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        output_confidence: bool = False,
        use_draft: bool | None = None,
        draft_only: bool = False,
        draft_ids: torch.Tensor | Sequence[torch.Tensor] | None = None,
        **kwargs,
    ):
        r"""
        Transcribe recordings. All arguments of [`~generation.GenerationMixin.generate`] are accepted.

        Unless `max_new_tokens` or `max_length` is passed, each recording may have
        `generation_config.max_new_tokens_per_second` tokens a second, and 16 more.

        Args:
            inputs (`torch.Tensor`, *optional*):
                `input_ids`, or `input_features`, which are told apart by their dtype.
            generation_config ([`~generation.GenerationConfig`], *optional*):
                Generation settings in place of those of the model.
            input_features, input_features_mask, audio_hidden_states, audio_hidden_states_mask (`torch.Tensor`, *optional*):
                See [`LlmAsrForConditionalGeneration.forward`].
            audio_outputs ([`LlmAsrAudioOutput`], *optional*):
                Recordings that are encoded and projected already, in place of `input_features`: from `get_audio_features`, or
                from [`batch_audio_outputs`] for streams.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Prompts with an audio token for each recording, padded on either side. Without them every recording is
                given `generation_config.transcription_prompt_ids`.
            attention_mask (`torch.Tensor`, *optional*):
                Non-zero for real tokens of `input_ids`; without `input_ids`, taken for `input_features_mask`.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embedded prompts; see [`LlmAsrModel.merge_audio_and_text`].
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets to cut off from `input_ids`, so that a training batch can be passed as it is.
            target_lengths, numbers (`torch.Tensor`, [`BatchNumbers`], *optional*):
                Ignored, so that a training batch can be passed: how many tokens there are is for the model to find out.
            is_translation (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                Rows that have no use for the drafts of the draft head, which are of transcripts. The prompt says what the task
                is.
            compression_ratio_threshold, logprob_threshold, no_speech_threshold (`float`, *optional*):
                With several values of `temperature`: when the next is tried; see [`Fallback`].
            output_confidence (`bool`, *optional*, defaults to `False`):
                Whether to return `avg_logprobs` and `no_speech_probs`, of shape `(batch_size,)`; see [`Confidence`]. Needs
                `return_dict_in_generate=True`.
            use_draft (`bool`, *optional*):
                Whether the language model verifies the drafts of the draft head rather than writing token by token
                (self-speculative decoding, arXiv 2603.11243). Only what it would have written itself is accepted, so
                greedy output is the same. By default drafts are used if the model has a draft head, its language model
                keeps attention caches alone, and no option asks for sampling, beams or another way of decoding, for the
                caller's own logits processors, stopping criteria or streamer. The cache is not returned with drafts.
            draft_only (`bool`, *optional*, defaults to `False`):
                Whether to return the drafts themselves, in one parallel step without the layers of the language model, of a
                model that was trained with `draft_only`. Prompts have no effect on drafts.
            draft_ids (`torch.LongTensor` of shape `(num_tokens,)` or a sequence of them, *optional*):
                A guess of the new tokens of each row, such as the transcript of the first part of the recording. The
                language model verifies it in place of the draft of the draft head; see `use_draft`, whose limits apply. A
                guess may be empty.

        Returns:
            [`~utils.ModelOutput`] or `torch.LongTensor`: The new tokens alone, or, if `input_ids` has a run of several
            audio tokens for each recording, the prompt and the new tokens. With `return_dict_in_generate=True`, also the
            recordings' `audio_lengths`, `alphas` and `fire_times`, as in [`LlmAsrAudioOutput`].

        Raises:
            `ValueError`: If prompts and recordings do not match, or options contradict each other.
        """
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        input_ids, input_features = _sort_inputs(inputs, input_ids, input_features)
        recordings = input_features if audio_hidden_states is None else audio_hidden_states
        if audio_outputs is not None:
            if recordings is not None:
                raise ValueError(
                    "`audio_outputs` take the place of `input_features` and `audio_hidden_states`; pass only one of them."
                )
            if draft_only:
                raise ValueError(
                    "`draft_only` encodes recordings itself; pass `input_features` or `audio_hidden_states`."
                )
            missing = [
                name for name in ("pooler_output", "audio_lengths", "num_frames") if audio_outputs.get(name) is None
            ]
            if missing:
                raise ValueError(f"`audio_outputs` have no {missing}; pass what `get_audio_features` returns.")
            recordings = audio_outputs.audio_lengths
        if recordings is None:
            if draft_ids is not None:
                raise ValueError("`draft_ids` need a recording: pass `input_features` or `audio_hidden_states`.")
            if inputs_embeds is not None:
                kwargs["inputs_embeds"] = inputs_embeds
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        check_tokens_per_second(self._option("max_new_tokens_per_second", kwargs))
        if draft_ids is not None and (use_draft or draft_only):
            raise ValueError("`draft_ids` take the place of the draft head; leave out `use_draft` and `draft_only`.")
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
        obstacle = find_unsupported(self, lambda name: self._option(name, kwargs))
        verifies_draft = bool(use_draft) or draft_ids is not None
        if verifies_draft and obstacle is not None:
            raise ValueError(obstacle)
        if use_draft and self.draft_head is None:
            raise ValueError("`use_draft` needs a model with `draft_head=True` in its projector configuration.")
        if use_draft is None and draft_ids is None and not draft_only and obstacle is None:
            is_asked_otherwise = any(self._option(name, kwargs) for name in ON_REQUEST)
            use_draft = (
                self.draft_head is not None
                and has_attention_alone(self.model.language_model)
                and not is_asked_otherwise
            )
        one_each = verifies_draft or output_confidence or fallback is not None
        if one_each and self._option("num_return_sequences", kwargs) not in (None, 1):
            raise ValueError("`num_return_sequences` must be 1 with `output_confidence` or several temperatures.")

        if draft_only:
            if one_each or self._option("do_sample", kwargs) or self._option("num_beams", kwargs) not in (None, 1):
                raise ValueError(
                    "`draft_only` makes no choices: leave out `use_draft`, `output_confidence`, temperatures, sampling and beams."
                )
            return self._draft_rows(
                kwargs,
                input_features=input_features,
                input_features_mask=input_features_mask,
                audio_hidden_states=audio_hidden_states,
                audio_hidden_states_mask=audio_hidden_states_mask,
            )
        if input_ids is None and inputs_embeds is None:
            if input_features_mask is None and input_features is not None:
                input_features_mask = attention_mask
            input_ids = self._default_prompt(kwargs, recordings)
            attention_mask = None
        is_audio = self.model.get_placeholder_mask(input_ids, inputs_embeds)
        if attention_mask is None:
            attention_mask = is_audio.new_ones(is_audio.shape, dtype=torch.long)
        if labels is not None:
            attention_mask = attention_mask * (labels == -100)
        if draft_ids is not None:
            draft_ids = (
                [draft_ids] if isinstance(draft_ids, torch.Tensor) and draft_ids.dim() == 1 else list(draft_ids)
            )
            if len(draft_ids) != len(is_audio):
                raise ValueError(
                    f"`draft_ids` has {len(draft_ids)} draft(s) for {len(is_audio)} row(s); pass a draft for each row."
                )
        if verifies_draft and kwargs.get("streamer") is not None and len(is_audio) > 1:
            raise ValueError(f"`streamer` takes one recording at a time with drafts, and there are {len(is_audio)}.")

        was_expanded = int(is_audio.sum()) != recordings.shape[0]
        if was_expanded:
            # The audio is filled in place. New tokens follow the prompt only if its padding is on the left.
            is_padding = (attention_mask == 0) & ~is_audio
            order = (~is_padding).long().argsort(dim=-1, stable=True)
            attention_mask, is_padding, is_audio = (
                tensor.gather(1, order) for tensor in (attention_mask, is_padding, is_audio)
            )
            if input_ids is not None:
                input_ids = input_ids.gather(1, order).masked_fill(is_padding, self.config.pad_token_id or 0)
            if inputs_embeds is not None:
                inputs_embeds = inputs_embeds.take_along_dim(order[:, :, None], dim=1)
        audio: Any = audio_outputs
        if audio is None:
            merged_inputs, audio = self.model.merge_audio_and_text(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                input_features=input_features,
                input_features_mask=input_features_mask,
                audio_hidden_states=audio_hidden_states,
                audio_hidden_states_mask=audio_hidden_states_mask,
                padding_side="left",
            )
        else:
            merged_inputs = merge_audio(
                self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds,
                attention_mask,
                find_audio_runs(is_audio, len(recordings)),
                audio.pooler_output,
                audio.audio_lengths,
                padding_side="left",
            )
        prompt = MergedPrompt(
            inputs_embeds=merged_inputs.inputs_embeds,
            attention_mask=merged_inputs.attention_mask,
            # Return an expanded prompt as it was passed, as other audio models do.
            input_ids=input_ids if was_expanded else None,
            max_new_tokens=self._max_new_tokens(is_audio, audio.num_frames, kwargs),
        )
        drafts = None
        eos_token_ids = self._eos_ids()
        if use_draft:
            drafts = split_drafts(
                self.draft(audio.pooler_output, audio.audio_lengths).argmax(-1),
                audio.audio_lengths,
                find_audio_runs(is_audio, len(audio.audio_lengths)).rows,
                len(is_audio),
                eos_token_ids,
            )
            if is_translation is not None:
                drafts = [[] if other else draft for draft, other in zip(drafts, is_translation.tolist(), strict=True)]
            drafts = drafts if any(drafts) else None
        elif draft_ids is not None:
            drafts = [[*draft.tolist(), *eos_token_ids[:1]] for draft in draft_ids]

        token_logprobs = TokenLogprobs(eos_token_ids) if output_confidence else None
        if fallback is None:
            outputs = self._decode(prompt, drafts, token_logprobs, **kwargs)
        else:
            outputs = self._decode_with_fallback(prompt, drafts, fallback, **kwargs)
        if not returns_dict:
            return outputs["sequences"] if isinstance(outputs, ModelOutput) else outputs
        if token_logprobs is not None and fallback is None:
            confidence = self._confidence(prompt, outputs.sequences[:, prompt.num_input_ids :], token_logprobs)
            outputs["avg_logprobs"], outputs["no_speech_probs"] = confidence.avg_logprobs, confidence.no_speech_probs
        for name in ("audio_lengths", "alphas", "fire_times"):
            outputs[name] = audio.get(name)
        return outputs

    def _draft_rows(self, kwargs: dict, **audio_inputs) -> ModelOutput | torch.Tensor:
        """See `draft_only` of `generate`."""
        if self.draft_head is None:
            raise ValueError("`draft_only` needs a model with `draft_head=True` in its projector configuration.")
        audio = self.get_audio_features(return_dict=True, **audio_inputs)
        audio_lengths = audio["audio_lengths"]
        drafted = self.draft(audio["pooler_output"], audio_lengths).argmax(-1)
        sequences = join_drafts(
            drafted,
            audio_lengths,
            self._eos_ids()[0],
            self._option("pad_token_id", kwargs) or 0,
            self._option("max_new_tokens", kwargs),
        )
        if not self._option("return_dict_in_generate", kwargs):
            return sequences
        names = ("audio_lengths", "alphas", "fire_times")
        return ModelOutput(sequences=sequences, **{name: audio[name] for name in names})

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

    def _max_new_tokens(self, is_audio: torch.Tensor, num_frames: torch.Tensor, kwargs: dict) -> torch.Tensor | None:
        """The maximum number of new tokens of each row, of shape `(batch_size,)`, unless the caller has set a length."""
        per_second = self._option("max_new_tokens_per_second", kwargs)
        if per_second is None or "max_new_tokens" in kwargs or "max_length" in kwargs:
            return None
        audio_runs = find_audio_runs(is_audio, len(num_frames))
        rows = audio_runs.rows.to(num_frames.device)
        frames = num_frames.new_zeros(len(is_audio)).index_add(0, rows, num_frames)
        max_new_tokens = self._option("max_new_tokens", kwargs)
        return length_limits(frames, self.config.audio_frame_rate, per_second, max_new_tokens)

    def _decode(
        self,
        prompt: MergedPrompt,
        drafts: list[list[int]] | None,
        token_logprobs: TokenLogprobs | None = None,
        **kwargs,
    ) -> Any:
        """What `generate` returns: a [`~utils.ModelOutput`] or a `torch.LongTensor`. Fills `token_logprobs`."""
        given: dict[str, Any] = {"attention_mask": prompt.attention_mask}
        if prompt.input_ids is None:
            given["inputs_embeds"] = prompt.inputs_embeds
        else:
            given |= {"inputs": prompt.input_ids, "prompt_embeds": prompt.inputs_embeds}
        if drafts is not None:
            keeps_cache = has_attention_alone(self.model.language_model)
            streamer = kwargs.pop("streamer", None)
            kwargs["custom_generate"] = partial(decode_with_drafts, drafts, keeps_cache, streamer, token_logprobs)
        criteria: list[StoppingCriteria] = [*(kwargs.pop("stopping_criteria", None) or ())]
        if prompt.max_new_tokens is not None:
            criteria.append(AudioLengthCriteria(prompt.max_new_tokens, prompt.num_input_ids))
            kwargs["max_new_tokens"] = int(prompt.max_new_tokens.max())
        kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        if token_logprobs is None or drafts is not None:
            return super().generate(**given, **kwargs)
        if self._makes_one_token_a_pass(kwargs):
            kwargs["stopping_criteria"].append(token_logprobs)
            hook = self.register_forward_hook(token_logprobs.note_logits)
            try:
                return super().generate(**given, **kwargs)
            finally:
                hook.remove()
        returned = {"return_dict_in_generate": True, "output_logits": True}
        outputs: Any = super().generate(**given, **{**kwargs, **returned})
        token_logprobs.add_outputs(outputs, prompt.num_input_ids)
        if self._option("output_logits", kwargs):
            return outputs
        return type(outputs)(**{name: value for name, value in outputs.items() if name != "logits"})

    def _makes_one_token_a_pass(self, kwargs: dict) -> bool:
        """Whether a call of `generate` is plain greedy decoding or sampling, whose passes hooks can watch."""
        names = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "custom_generate")
        is_plain = self._option("num_beams", kwargs) in (None, 1) and not any(
            self._option(name, kwargs) for name in names
        )
        # Other caches make `generate` compile the model.
        return is_plain and self._option("cache_implementation", kwargs) in (None, "dynamic")

    def _decode_with_fallback(
        self, prompt: MergedPrompt, drafts: list[list[int]] | None, fallback: Fallback, **kwargs
    ) -> ModelOutput:
        """Decode each row at the first temperature with a plausible result, or at the last temperature."""
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
            greedy_drafts = None if drafts is None or temperature > 0 else [drafts[row] for row in pending.tolist()]
            token_logprobs = TokenLogprobs(self._eos_ids())
            found = self._decode(rows, greedy_drafts, token_logprobs, **options)
            found = found["sequences"] if isinstance(found, ModelOutput) else found
            tokens = found[:, rows.num_input_ids :]
            confidence = self._confidence(rows, tokens, token_logprobs)
            written = self._is_written(tokens, rows.max_new_tokens)
            rates = [
                compression_ratio(row[kept].tolist(), vocab_size) for row, kept in zip(tokens, written, strict=True)
            ]
            ratios = torch.tensor(rates, device=device)
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
        limits = max_new_tokens.to(tokens.device)
        return written & (torch.arange(tokens.shape[1], device=tokens.device) < limits[:, None])

    def _confidence(self, prompt: MergedPrompt, tokens: torch.Tensor, token_logprobs: TokenLogprobs) -> Confidence:
        """See [`Confidence`]; `tokens` are the new ones, of shape `(batch_size, length)`."""
        written = self._is_written(tokens, prompt.max_new_tokens)
        logprobs = token_logprobs.logprobs()[:, : tokens.shape[1]]
        averages = logprobs.where(written, 0.0).sum(-1) / written.sum(-1)
        device = prompt.inputs_embeds.device
        return Confidence(averages.to(device), token_logprobs.no_speech_probs.to(device))

    # Like other models of Transformers, the method names only the parameters that it uses.
    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids, inputs_embeds=None, prompt_embeds=None, past_key_values=None, cache=None, **kwargs
    ):
        cache = cache if past_key_values is None else past_key_values
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **{CACHE_NAME: cache}, **kwargs
        )
        start = 0 if cache is None else int(cache.get_seq_length())
        if prompt_embeds is None or start >= prompt_embeds.shape[1]:
            return model_inputs
        # Without a cache, the prompt is read again for each new token.
        ids = model_inputs["input_ids"]
        written = self.get_input_embeddings()(ids[:, prompt_embeds.shape[1] - start :]).to(prompt_embeds.device)
        embeds = torch.cat([prompt_embeds[:, start : start + ids.shape[1]], written], dim=1)
        return {**model_inputs, "input_ids": None, "inputs_embeds": embeds}


def _sort_inputs(
    inputs: torch.Tensor | None, input_ids: torch.Tensor | None, input_features: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Return `input_ids` and `input_features`.

    Transformers' speech recognition pipeline passes features under the name of the model's main input, which is `input_ids`.

    Raises:
        `ValueError`: If one of them is passed twice.
    """
    passed = [tensor for tensor in (inputs, input_ids) if tensor is not None]
    ids = [tensor for tensor in passed if not tensor.is_floating_point()]
    features = [tensor for tensor in (*passed, input_features) if tensor is not None and tensor.is_floating_point()]
    if len(ids) > 1 or len(features) > 1:
        raise ValueError("`inputs` repeats `input_ids` or `input_features`; pass each of them once.")
    return (ids[0] if ids else None), (features[0] if features else None)


__all__ = ["LlmAsrGenerationMixin"]
