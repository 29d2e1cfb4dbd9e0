"""How often the host waits for the device in a micro-batch of training: at most twice."""

import numpy as np
import pytest
import torch
from host_waits import HostWaits
from tiny_models import compose

from llm_asr.modeling.batch_numbers import find_true, is_any_of, read_batch_numbers, read_frame_numbers, select
from llm_asr.training.data_collator import LlmAsrDataCollator


def make_rows(recordings):
    texts = ["one", "uno dos tres cuatro", "two three"]
    return [{"audio": audio, "text": text, "language": "en"} for audio, text in zip(recordings, texts, strict=True)]


PROJECTORS = {
    "conv": {},
    "moe": {},
    "stack": {},
    "cif": {"draft_head": True},
    "moe_cif": {"draft_head": True, "routing_level": "utterance"},
}


@pytest.mark.parametrize("projector_type", PROJECTORS)
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_micro_batch_waits_twice_at_most(parts, recordings, projector_type, padding):
    model, processor = compose(parts, projector_type, encoder_padding=padding, **PROJECTORS[projector_type])
    model.freeze_audio_tower()
    model.freeze_language_model()
    model.train()
    batch = LlmAsrDataCollator(processor, numbers=True)(make_rows(recordings))
    num_items = (batch["labels"] != -100).sum()
    with HostWaits() as waits:
        loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
    assert len(waits.found) <= 2, waits.found
    # Without the numbers they are read, in one transfer.
    numbers = batch.pop("numbers")
    model.zero_grad()
    with HostWaits() as waits:
        again = model(**batch, num_items_in_batch=num_items).loss
    assert len(waits.found) <= 3, waits.found
    torch.testing.assert_close(again, loss)
    own = read_batch_numbers(
        batch["input_ids"] == processor.audio_token_id,
        batch["attention_mask"],
        batch["input_features_mask"],
        labels=batch["labels"],
        target_lengths=batch["target_lengths"],
    )
    assert own == numbers


def test_waits_are_counted():
    values, mask = torch.arange(6.0), torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    with HostWaits() as waits:
        values[mask]
        mask.nonzero()
        values.sum().item()
        values.tolist()
        mask.repeat_interleave(mask.long())
        if mask.any():
            pass
    assert len(waits.found) == 6, waits.found
    with HostWaits() as waits:
        found = select(values, mask, 3)
        indices = find_true(mask, 3)
        mask.repeat_interleave(mask.long(), output_size=3)
        ends = is_any_of(indices, [2, 3])
    assert not waits.found
    assert found.tolist() == [0.0, 2.0, 3.0]
    assert indices.tolist() == [0, 2, 3]
    assert ends.tolist() == [False, True, True]


def test_frames_are_counted_with_holes_and_without_padding():
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]])
    numbers = read_frame_numbers(mask)
    assert (numbers.lengths, numbers.extent, numbers.has_padding) == ([2, 2], 3, True)
    assert not read_frame_numbers(mask[:1, :1]).has_padding
    assert read_frame_numbers(torch.zeros(2, 3)).extent == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_waits_twice_at_most(parts, recordings, recwarn):
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.freeze_audio_tower()
    model.freeze_language_model()
    model.to("cuda").train()
    batch = LlmAsrDataCollator(processor, numbers=True)(make_rows([np.asarray(one) for one in recordings])).to("cuda")
    model(**batch).loss.backward()
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [str(one.message) for one in recwarn if "synchronizing" in str(one.message)]
    assert len(found) <= 2, found
