"""An engine with vLLM: continuous batching, paged attention and several GPUs."""

import itertools
import math
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from transformers import AutoConfig, GenerationConfig

from ..publishing.front_end import PromptEmbeds
from .engine import Decoding, Engine, EngineDeadError, NewTokens, end_token_ids


# Settings of a `generation_config` that vLLM follows as `generate()` does, or that only change the form of the output.
FOLLOWED = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "suppress_tokens", "max_new_tokens"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("use_cache", "cache_implementation", "compile_config", "disable_compile", "return_dict_in_generate"),
    *("output_scores", "output_logits", "output_attentions", "output_hidden_states", "max_length"),
}
# Values without an effect. Any other setting is refused.
WITHOUT_EFFECT = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "typical_p": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
}

# The default of `generate()`.
DEFAULT_TOP_K = 50


class VllmEngine(Engine):
    """
    Generates with vLLM's asynchronous engine.

    Args:
        folder (`Path`): Folder of the exported language model.
        dtype (`str`): Dtype of the weights. `"auto"` means the dtype in which they were saved.
        engine_args (`dict`): Fields of vLLM's `AsyncEngineArgs`, such as `tensor_parallel_size`.

    Raises:
        `ImportError`: If vLLM is not installed.
        `ValueError`: If the checkpoint has decoding settings that vLLM does not support, or `engine_args` has an unknown
            field.
    """

    def __init__(self, folder: Path, dtype: str, engine_args: dict):
        # vLLM sends usage statistics by default. A server of private recordings must not.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncEngineArgs

        self.generation_config = GenerationConfig.from_pretrained(folder)
        check_is_followed(self.generation_config)
        self._end_token_ids = end_token_ids(self.generation_config)
        saved_as = str(AutoConfig.from_pretrained(folder).dtype).removeprefix("torch.")
        options = {
            "model": str(folder),
            # vLLM's own "auto" would cast float32 to half precision, which changes transcripts.
            "dtype": saved_as if dtype == "auto" else dtype,
            "enable_prompt_embeds": True,
            "skip_tokenizer_init": True,
            # Prompts differ from their first recording on, so a prefix cache would never be hit.
            "enable_prefix_caching": False,
            # Ignore the checkpoint's sampling settings unless a request asks for sampling.
            "generation_config": "vllm",
            **engine_args,
        }
        try:
            self.engine_args = AsyncEngineArgs(**options)
        except TypeError as error:
            raise ValueError(f"`engine_args`: {error}") from error
        self._numbers = itertools.count()

    async def start(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        self.engine = AsyncLLM.from_engine_args(self.engine_args)
        self.max_length = self.engine.model_config.max_model_len

    async def stop(self) -> None:
        self.engine.shutdown()
        # The engine's destructor shuts it down again. That fails during Python's own shutdown, so run it now.
        del self.engine

    async def generate(self, prompt: PromptEmbeds, decoding: Decoding) -> AsyncGenerator[NewTokens, None]:
        from vllm.inputs import embeds_input
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        # vLLM casts the embeddings to the dtype of the language model.
        inputs = embeds_input(prompt.inputs_embeds.cpu())
        params = self._sampling_params(prompt.max_new_tokens, decoding)
        is_first = True
        try:
            # Closing the generator aborts the request in the engine.
            async with aclosing(self.engine.generate(inputs, params, str(next(self._numbers)))) as outputs:
                async for output in outputs:
                    (completion,) = output.outputs
                    new = NewTokens(list(completion.token_ids))
                    if decoding.output_confidence and new.ids:
                        rows = completion.logprobs
                        new.logprobs = [row[token].logprob for row, token in zip(rows, new.ids, strict=True)]
                        if is_first:
                            new.no_speech_prob = self._end_probability(rows[0])
                            is_first = False
                    yield new
        except VllmDeadError as error:
            raise EngineDeadError("vLLM's engine has stopped.") from error

    async def check_health(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        try:
            await self.engine.check_health()
        except VllmDeadError as error:
            raise EngineDeadError("vLLM's engine has stopped.") from error

    def _end_probability(self, logprobs: dict) -> float:
        return sum(math.exp(logprobs[token].logprob) for token in self._end_token_ids)

    def _sampling_params(self, max_new_tokens: int | None, decoding: Decoding):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        config = self.generation_config
        sampling = {}
        if decoding.temperature > 0:
            sampling = {
                "top_k": DEFAULT_TOP_K if config.top_k is None else config.top_k,
                "top_p": 1.0 if config.top_p is None else config.top_p,
                "min_p": 0.0 if config.min_p is None else config.min_p,
            }
        suppressed = {token: -float("inf") for token in config.suppress_tokens or ()}
        return SamplingParams(
            temperature=decoding.temperature,
            max_tokens=max_new_tokens,
            stop_token_ids=self._end_token_ids,
            logit_bias=suppressed or None,
            logprob_token_ids=self._end_token_ids if decoding.output_confidence else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **sampling,
        )


def check_is_followed(config: GenerationConfig) -> None:
    """
    Raises:
        `ValueError`: If `config` has settings that would make vLLM's transcripts differ from those of `generate()`.
    """
    ignored = {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in FOLLOWED and value is not None and value != WITHOUT_EFFECT.get(name)
    }
    if ignored:
        raise ValueError(
            f"The checkpoint's `generation_config` sets {ignored}, which vLLM does not follow as `generate()` does. Set "
            "them to None or, unless they are about beam search, serve the checkpoint with `--engine transformers`."
        )
