"""A language model with only the tokens that some texts use: less memory, smaller files and faster heads."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..processing.languages import DEFAULT_LANGUAGE_TAG, LANGUAGE_CODE_TO_NAME, LANGUAGE_PLACE
from ..processing.processing_llm_asr import DEFAULT_CHAT_TEMPLATE, DEFAULT_TRANSCRIPTION_TEMPLATE
from ..processing.rendering import render_request
from .tokenizer_vocabulary import add_components, find_characters, find_indispensable, read_state, trim_tokenizer


# Settings of generation with sets of tokens, from which removed tokens disappear, and with sequences of them.
TOKEN_SETS = ("suppress_tokens", "begin_suppress_tokens")
TOKEN_SEQUENCES = ("bad_words_ids",)

# Texts of a batch of the tokenizer.
BATCH = 1000

# Tokens on which both models are compared, and the largest difference of logits by the largest logit: a matrix of another
# size may be multiplied in another order.
CHECKED_TOKENS = 32
TOLERANCE = 0.02


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], min_count: int = 1
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """
    Remove the tokens that `texts` do not use from a language model and its tokenizer.

    Kept are the tokens of `texts` (with and without a space before) and of transcription requests in every language, bytes,
    single ASCII characters, and special tokens without placeholders such as `<unused7>`. Each text keeps its tokens, and the
    model its logits for them: where the original model would choose a kept token, so does the new one. Other texts are
    divided into more tokens.

    Args:
        model ([`PreTrainedModel`]): A causal language model. It is not changed.
        tokenizer ([`PreTrainedTokenizerBase`]): Its fast tokenizer (BPE, Unigram or WordLevel).
        texts (`Iterable[str]`): Texts as the model is to write them.
        min_count (`int`, *optional*, defaults to 1): How often `texts` must use a token, so that it is kept. Above 1, rare
            words of `texts` are divided into more tokens, down to characters, and each remaining token has more examples to
            be learned from.

    Returns:
        The new model, the new tokenizer, and the old id of each new id.

    Raises:
        `TypeError`: If an entry of `texts` is not a string.
        `ValueError`: If there are no `texts`, `min_count` is below 1, or the model or the tokenizer cannot be trimmed.

    Example:

    ```python
    >>> model, tokenizer, old_ids = trim_vocabulary(model, tokenizer, ["one two three", "uno dos tres"])
    >>> model.save_pretrained("trimmed")
    >>> tokenizer.save_pretrained("trimmed")
    ```"""
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, got {min_count}.")
    texts = _check_texts(texts)
    _check_model(model)
    state = read_state(tokenizer)
    num_embeddings = _input_embedding(model).num_embeddings
    requests = list(request_texts(tokenizer))
    named = set(_named_ids(model)) | set(tokenizer.all_special_ids)
    tokens_by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    uses = _count_tokens(tokenizer, texts)
    used_ids = {index for index, count in uses.items() if count >= min_count} | set(_count_tokens(tokenizer, requests))
    tokens = {tokens_by_id[index] for index in used_ids}
    if min_count > 1:
        tokens |= find_characters(state, texts)
    tokens |= find_indispensable(state, [tokens_by_id[index] for index in sorted(named & tokens_by_id.keys())])
    new_tokenizer, old_ids = trim_tokenizer(tokenizer, add_components(state, tokens))
    if max(old_ids) >= num_embeddings:
        missing = [tokens_by_id[index] for index in old_ids if index >= num_embeddings]
        raise ValueError(f"The model has {num_embeddings} embeddings and none for the tokens {missing[:3]}.")
    new_ids = {old: new for new, old in enumerate(old_ids)}
    _check_same_tokens(tokenizer, new_tokenizer, requests if min_count > 1 else texts + requests, new_ids)
    _check_same_texts(tokenizer, new_tokenizer, texts)
    trimmed = _keep_rows(model, old_ids)
    _check_same_logits(model, trimmed, old_ids, new_tokenizer(texts[0]).input_ids[:CHECKED_TOKENS])
    return trimmed, new_tokenizer, old_ids


def repeat_trimming(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_ids: Sequence[int]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Trim a language model as before, without the texts.

    Args:
        model ([`PreTrainedModel`]): The causal language model that was trimmed. It is not changed.
        tokenizer ([`PreTrainedTokenizerBase`]): Its fast tokenizer.
        old_ids (`Sequence[int]`): What [`trim_vocabulary`] returned: the old id of each new id.

    Returns:
        The same model and tokenizer as [`trim_vocabulary`] returned.

    Raises:
        `ValueError`: If `old_ids` were not made by trimming this tokenizer, or the model or the tokenizer cannot be trimmed.
    """
    _check_model(model)
    tokens_by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    unknown = sorted(set(old_ids) - tokens_by_id.keys())
    if unknown:
        raise ValueError(
            f"`old_ids` names tokens {unknown[:3]}, which the tokenizer does not have; pass the tokenizer that was trimmed."
        )
    new_tokenizer, found = trim_tokenizer(tokenizer, [tokens_by_id[index] for index in old_ids])
    if found != list(old_ids):
        raise ValueError(
            "`old_ids` is in another order than a trimming makes; pass the list that `trim_vocabulary` returned."
        )
    return _keep_rows(model, found), new_tokenizer


def request_texts(tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """The prompts of [`LlmAsrProcessor`] with each language and with none, and what a transcript begins with."""
    chat_template = tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE
    for language in (None, *LANGUAGE_CODE_TO_NAME.values()):
        for identify_language, target_language in ((False, None), (True, None), (False, language)):
            # The audio token is added when the model is composed.
            variables = {
                "audio_token": "",
                "language": language,
                "identify_language": identify_language,
                "prompt": None,
                "keywords": ["a", "b"],
                "target_language": target_language,
            }
            yield render_request(
                DEFAULT_TRANSCRIPTION_TEMPLATE, chat_template, tokenizer.special_tokens_map, **variables
            )
        if language is not None:
            yield DEFAULT_LANGUAGE_TAG.replace(LANGUAGE_PLACE, language)
    yield " Context:"


def _check_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("`texts` must be several strings, got one.")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`texts` must have strings, but entry {row} is {text!r}.")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("`texts` is empty; it must have the texts whose tokens are kept.")
    return texts


def _check_model(model: PreTrainedModel) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("`model` is quantized; trim it before it is quantized.")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("`model` has adapters; merge them before it is trimmed.")
    if model.config.model_type == "llm_asr":
        raise ValueError("`model` is an LLM-ASR model; trim its language model, and compose a model from that.")


def _count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Counter[int]:
    """How often each token occurs in `texts`, at the beginning of a line or after a space, whichever is more often."""
    uses = Counter(tokenizer("").input_ids)
    for prefix in ("", " "):
        counts: Counter[int] = Counter()
        for start in range(0, len(texts), BATCH):
            batch = [prefix + text for text in texts[start : start + BATCH]]
            for ids in tokenizer(batch, add_special_tokens=False).input_ids:
                counts.update(ids)
        uses |= counts
    return uses


def _check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    new_tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    new_ids: dict[int, int],
) -> None:
    """Raise a `ValueError` unless both tokenizers divide all `texts` in the same way."""
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        rows = zip(batch, tokenizer(batch).input_ids, new_tokenizer(batch).input_ids, strict=True)
        for text, old, new in rows:
            if [new_ids[index] for index in old] != new:
                raise ValueError(f"The trimmed tokenizer divides {text[:80]!r} in another way; it cannot be trimmed.")


def _check_same_texts(
    tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> None:
    """Raise a `ValueError` unless the tokens of both tokenizers are the same texts."""
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        before, after = (
            one.batch_decode(one(batch).input_ids, skip_special_tokens=True) for one in (tokenizer, new_tokenizer)
        )
        for old, new in zip(before, after, strict=True):
            if old != new:
                raise ValueError(f"The trimmed tokenizer reads {old[:80]!r} as {new[:80]!r}; it cannot be trimmed.")


def _named_ids(model: PreTrainedModel) -> Iterable[int]:
    """Ids of tokens that the configurations name, such as the end of a text."""
    for settings in (*_configs(model), model.generation_config):
        for name, value in _token_settings(settings):
            if name not in (*TOKEN_SETS, *TOKEN_SEQUENCES):
                yield from value if isinstance(value, list) else [value]


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configurations with ids of the language model's tokens."""
    text_config = model.config.get_text_config()
    return [model.config] if text_config is model.config else [model.config, text_config]


def _token_settings(settings: Any) -> list[tuple[str, Any]]:
    """Names and values of the settings that hold ids of tokens."""
    if settings is None:
        return []
    names = (*TOKEN_SETS, *TOKEN_SEQUENCES)
    return [
        (name, value)
        for name, value in vars(settings).items()
        if value is not None and (name in names or name.endswith("_token_id"))
    ]


def _input_embedding(model: PreTrainedModel) -> torch.nn.Embedding:
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise ValueError(
            f"The embedding of a {type(model).__name__} is a {type(embedding).__name__}; it cannot be trimmed."
        )
    return embedding


def _keep_rows(model: PreTrainedModel, old_ids: Sequence[int]) -> PreTrainedModel:
    """A copy of `model` with the tokens `old_ids`, in this order."""
    model = copy.deepcopy(model)
    embedding: Any = _input_embedding(model)
    head: Any = model.get_output_embeddings()
    tensors = [embedding.weight]
    if head is not None:
        # A tied head shares the tensor.
        tensors += [
            tensor
            for tensor in (head.weight, getattr(head, "bias", None))
            if tensor is not None and tensor is not tensors[0]
        ]
    rows = torch.tensor(old_ids, device=embedding.weight.device)
    with torch.no_grad():
        for tensor in tensors:
            tensor[: len(rows)] = tensor[rows]
    has_padding = embedding.padding_idx is not None
    model.resize_token_embeddings(len(rows), mean_resizing=False)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    for settings in (*_configs(model), model.generation_config):
        for name, value in _token_settings(settings):
            setattr(settings, name, _renumber(name, value, new_ids.get))
    if has_padding:
        _input_embedding(model).padding_idx = model.config.get_text_config().pad_token_id
    return model


def _renumber(name: str, value: Any, new_id: Callable[[int], int | None]) -> Any:
    """The value of a setting with new ids. An id without a token, such as -1, stays out."""
    if name in TOKEN_SEQUENCES:
        sequences = [[new_id(index) for index in sequence] for sequence in value]
        # A sequence with a removed token cannot be written.
        return [sequence for sequence in sequences if None not in sequence] or None
    if isinstance(value, list):
        return [new for new in map(new_id, value) if new is not None] or None
    return new_id(value)


def _check_same_logits(
    model: PreTrainedModel, trimmed: PreTrainedModel, old_ids: Sequence[int], ids: list[int]
) -> None:
    """Raise a `ValueError` unless both models give the same logits, as they do not with a second table of embeddings."""
    rows = torch.tensor([[old_ids[index] for index in ids]], device=model.device)
    with torch.no_grad():
        logits = model.eval()(input_ids=rows).logits[..., old_ids]
        new = trimmed.eval()(input_ids=torch.tensor([ids], device=trimmed.device)).logits
    if not torch.allclose(new, logits, rtol=0.0, atol=TOLERANCE * logits.abs().max().item()):
        raise ValueError(
            f"A trimmed {type(model).__name__} gives other logits, because more than its embedding and its head depends on the "
            "tokens; it cannot be trimmed."
        )
