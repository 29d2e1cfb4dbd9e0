"""Losses of batches with translations: what CIF and drafts learn is about the transcript."""

import pytest
import torch
from model_batches import KERNEL_NOISE
from tiny_models import compose

from llm_asr.modeling.cif import integrate_and_fire, quantity_loss


SPOKEN = ["uno dos tres", "cuatro cinco", "dos"]
TRANSLATED = ["one two three", None, "a much longer text than two"]


@pytest.fixture(scope="module")
def model_and_processor(parts):
    return compose(parts, "moe_cif", draft_head=True)


def make_batch(processor, recordings, transcripts=SPOKEN, translations=TRANSLATED):
    tasks = ["transcribe" if text is None else "translate" for text in translations]
    return processor.apply_transcription_request(
        recordings,
        transcription=transcripts,
        translation=translations,
        task=tasks,
        target_language=[None if text is None else "en" for text in translations],
    )


def test_target_lengths_are_of_the_transcripts(model_and_processor, recordings):
    _, processor = model_and_processor
    batch = make_batch(processor, recordings, transcripts=["uno dos tres", "cuatro cinco", None])
    plain = processor.apply_transcription_request(recordings, transcription=SPOKEN)
    assert batch["target_lengths"].tolist() == [*plain["target_lengths"].tolist()[:2], -1]
    assert batch["is_translation"].tolist() == [True, False, True]
    answers = [row[row != -100] for row in batch["labels"]]
    assert processor.batch_decode(answers) == ["one two three", "cuatro cinco", "a much longer text than two"]


def test_rows_are_left_out_of_the_losses_that_are_not_about_them(model_and_processor, recordings):
    model, processor = model_and_processor
    batch = make_batch(processor, recordings, transcripts=["uno dos tres", "cuatro cinco", None])
    outputs = model(**batch)
    targets = batch["target_lengths"]
    num_labels = (batch["labels"] != -100).sum()
    errors = (outputs.quantities - targets).abs()[:2].sum()
    torch.testing.assert_close(outputs.quantity_loss, errors / num_labels)
    # A known transcript fires its tokens, an unknown one what CIF predicts.
    predicted = int(model.get_audio_features(**processor(audio=recordings)).audio_lengths[2])
    assert outputs.audio_lengths.tolist() == [*targets[:2].tolist(), predicted]

    alone = model(**processor.apply_transcription_request(recordings[1], transcription=SPOKEN[1]))
    num_alone = targets[1] + 1
    torch.testing.assert_close(outputs.draft_loss * num_labels, alone.draft_loss * num_alone, **KERNEL_NOISE)
    torch.testing.assert_close(
        outputs.loss,
        outputs.lm_loss
        + sum(
            getattr(model.config.projector_config, f"{name}_coef") * getattr(outputs, name)
            for name in ("quantity_loss", "draft_loss", "router_aux_loss", "router_z_loss")
        ),
    )


def test_the_same_row_gives_the_same_embeddings_alone_and_in_a_mixed_batch(model_and_processor, recordings):
    model, processor = model_and_processor
    transcripts = ["uno dos tres", "cuatro cinco", None]
    together = model(**make_batch(processor, recordings, transcripts))
    embeds = together.audio_embeds.split(together.audio_lengths.tolist())
    for index in range(3):
        alone = model(
            **make_batch(processor, recordings[index], transcripts[index : index + 1], TRANSLATED[index : index + 1])
        )
        torch.testing.assert_close(embeds[index], alone.audio_embeds, **KERNEL_NOISE)


def test_without_target_lengths_a_translation_has_none(model_and_processor, recordings):
    """Its labels would otherwise be taken for the transcript."""
    model, processor = model_and_processor
    batch = make_batch(processor, recordings, transcripts=[None, "cuatro cinco", None])
    expected = model(**batch)
    del batch["target_lengths"]
    found = model(**batch)
    torch.testing.assert_close(found.loss, expected.loss)


def test_a_draft_stage_of_translations_alone_has_no_draft_loss(model_and_processor, recordings):
    model, processor = model_and_processor
    batch = make_batch(processor, recordings[:1], ["uno dos tres"], ["one two three"])
    outputs = model(**batch, draft_only=True)
    assert outputs.draft_loss == 0
    assert outputs.quantity_loss > 0
    outputs.loss.backward()
    model.zero_grad()


def test_training_batches_can_be_generated_from(model_and_processor, recordings):
    model, processor = model_and_processor
    batch = make_batch(processor, recordings)
    assert model.generate(**batch, max_new_tokens=2).shape == (3, 2)


def test_cif_rows_without_a_target():
    torch.manual_seed(0)
    hidden, alphas = torch.randn(3, 20, 4, dtype=torch.float64), torch.rand(3, 20, dtype=torch.float64)
    free = integrate_and_fire(hidden, alphas)
    forced = integrate_and_fire(hidden, alphas, target_lengths=torch.tensor([4, 4, 4]))
    mixed = integrate_and_fire(hidden, alphas, target_lengths=torch.tensor([4, -1, 4]))
    assert mixed.lengths.tolist() == [4, int(free.lengths[1]), 4]
    rows = mixed.embeds.split(mixed.lengths.tolist())
    torch.testing.assert_close(rows[1], free.embeds.split(free.lengths.tolist())[1])
    torch.testing.assert_close(rows[2], forced.embeds.split([4, 4, 4])[2])
    loss = quantity_loss(mixed.quantities, torch.tensor([4, -1, 4]))
    torch.testing.assert_close(loss, (mixed.quantities - 4).abs()[[0, 2]].sum() / 8)
