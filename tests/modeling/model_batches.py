"""Combinations of parts, batches and generation options for the tests of the model."""

import pytest
import torch

from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES


TRANSCRIPTS = ["one", "uno dos tres cuatro", "two three"]
CONTEXTS = ["five", None, "one two three four"]

# The combinations of encoders and language models.
AUDIO_AND_TEXT = [
    ("whisper", "qwen2"),
    ("whisper", "llama"),
    ("whisper", "qwen2-tied"),
    ("wav2vec2-bert", "qwen2"),
    ("parakeet", "qwen2"),
    ("moonshine", "qwen2"),
]
# Projectors of one kind see the same of an encoder and a language model, so one of each kind is combined with all of them.
COMBINED_TYPES = ("conv", "moe", "cif", "moe_cif")
COMBINATIONS = [(projector, *audio_and_text) for projector in COMBINED_TYPES for audio_and_text in AUDIO_AND_TEXT]
COMBINATIONS += [(projector, "whisper", "qwen2") for projector in PROJECTOR_TYPES if projector not in COMBINED_TYPES]

NUM_NEW_TOKENS = 6
# Equal numbers of tokens, so that sequences can be compared without searching for their ends.
GREEDY = {"min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS, "do_sample": False}
KERNEL_NOISE = {"rtol": 2e-4, "atol": 2e-4}

every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
every_projector = pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
fixed_rate_projectors = pytest.mark.parametrize("projector_type", ["conv", "moe"])
cif_projectors = pytest.mark.parametrize("projector_type", ["cif", "moe_cif"])


def request(processor, recordings, **kwargs):
    """Inputs for recordings, with prompts of several lengths."""
    prompt = CONTEXTS[: len(recordings)]
    return processor.apply_transcription_request(recordings, **{"prompt": prompt, **kwargs})


def training_batch(processor, recordings):
    return request(processor, recordings, transcription=TRANSCRIPTS)


def one_by_one(processor, recordings, with_transcripts=False):
    """Prepare each row of a batch as a separate batch."""
    for recording, context, transcript in zip(recordings, CONTEXTS, TRANSCRIPTS, strict=True):
        transcription = [transcript] if with_transcripts else None
        yield processor.apply_transcription_request([recording], prompt=[context], transcription=transcription)


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def num_labels(batch):
    return int((batch["labels"] != -100).sum())


def expand(batch, audio_token_id, lengths, padding_side="left"):
    """Expand the prompts to `lengths` audio tokens, as generic tools write them."""
    names = [name for name in ("input_ids", "labels") if name in batch]
    rows = {name: [] for name in names}
    for row, length in enumerate(lengths):
        real = batch["attention_mask"][row].bool()
        is_audio = batch["input_ids"][row][real] == audio_token_id
        repeats = torch.where(is_audio, length, 1)
        for name in names:
            rows[name].append(batch[name][row][real].repeat_interleave(repeats))

    def pad(tensors, value):
        return torch.nn.utils.rnn.pad_sequence(tensors, True, value, padding_side)

    expanded = {**batch, "input_ids": pad(rows["input_ids"], 0)}
    expanded["attention_mask"] = pad([torch.ones_like(row) for row in rows["input_ids"]], 0)
    if "labels" in batch:
        expanded["labels"] = pad(rows["labels"], -100)
    return expanded


def generate(model, batch, **kwargs):
    return model.generate(**batch, **{**GREEDY, **kwargs})


def backward(model, **batch):
    """Run a backward pass, and return gradients by parameter name and the outputs."""
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, outputs
