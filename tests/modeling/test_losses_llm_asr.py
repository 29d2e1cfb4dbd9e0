"""Losses and gradients."""

import pytest
import torch
import torch.nn.functional as F
from model_batches import (
    KERNEL_NOISE,
    NUM_NEW_TOKENS,
    backward,
    cif_projectors,
    every_combination,
    every_projector,
    generate,
    num_labels,
    one_by_one,
    request,
    rows_of,
    training_batch,
)
from tiny_models import compose

from llm_asr.modeling.expert_balance import count_expert_load, load_balancing_loss, router_z_loss


@every_combination
def test_loss_is_the_weighted_sum_of_its_parts(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    batch = training_batch(processor, recordings)
    outputs = model(**batch)
    num_targets = num_labels(batch)

    # Rows are padded on the right, and targets are their last tokens.
    row_lengths = batch["attention_mask"].sum(-1)
    cross_entropy = 0.0
    for row, row_length in enumerate(row_lengths.tolist()):
        targets = batch["labels"][row][batch["labels"][row] != -100]
        scores = outputs.logits[row, row_length - 1 - len(targets) : row_length - 1]
        cross_entropy += F.cross_entropy(scores, targets, reduction="sum")
    torch.testing.assert_close(outputs.lm_loss, cross_entropy / num_targets)
    expected = outputs.lm_loss

    projector_config = model.config.projector_config
    assert (outputs.quantity_loss is not None) == projector_config.uses_cif
    if projector_config.uses_cif:
        assert outputs.audio_lengths.tolist() == batch["target_lengths"].tolist()
        errors = (outputs.quantities - batch["target_lengths"]).abs()
        torch.testing.assert_close(outputs.quantity_loss, errors.sum() / num_targets)
        expected = expected + projector_config.quantity_loss_coef * outputs.quantity_loss
    assert (outputs.ctc_loss is not None) == projector_config.uses_ctc
    if projector_config.uses_ctc:
        expected = expected + projector_config.ctc_loss_coef * outputs.ctc_loss
    has_experts = "moe" in projector_config.projector_type
    assert (outputs.router_aux_loss is not None) == (outputs.router_z_loss is not None) == has_experts
    if has_experts:
        assert len(outputs.router_logits) == outputs.audio_lengths.sum()
        assert outputs.selected_experts.shape == (len(outputs.router_logits), projector_config.num_experts_per_tok)
        load = count_expert_load(outputs.router_logits, outputs.selected_experts)
        torch.testing.assert_close(outputs.router_aux_loss, load_balancing_loss(outputs.router_logits, load))
        torch.testing.assert_close(outputs.router_z_loss, router_z_loss(outputs.router_logits))
        expected = expected + projector_config.router_aux_loss_coef * outputs.router_aux_loss
        expected = expected + projector_config.router_z_loss_coef * outputs.router_z_loss
    torch.testing.assert_close(outputs.loss, expected)


@every_combination
def test_recordings_give_the_same_parts_alone_and_in_a_batch(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    batch = training_batch(processor, recordings)
    with torch.no_grad():
        together = model(**batch)
        alone = [model(**one) for one in one_by_one(processor, recordings, with_transcripts=True)]
        order = [2, 0, 1]
        reordered = model(**rows_of(batch, order))

    weights = (batch["labels"] != -100).sum(-1).float()
    lengths = together.audio_lengths.tolist()
    assert lengths == [one.audio_lengths.item() for one in alone]
    for name in ("lm_loss", "quantity_loss", "ctc_loss"):
        if getattr(together, name) is None:
            continue
        each = torch.stack([one[name] for one in alone])
        torch.testing.assert_close(together[name], (each * weights).sum() / weights.sum(), **KERNEL_NOISE)
    for name in ("audio_embeds", "router_logits", "fire_times", "quantities"):
        if getattr(together, name) is None:
            continue
        torch.testing.assert_close(together[name], torch.cat([one[name] for one in alone]), **KERNEL_NOISE)
    # The balance loss depends on all frames together, which are the frames of the single recordings.
    if together.router_logits is not None:
        frames = torch.cat([one.router_logits for one in alone])
        load = count_expert_load(frames, torch.cat([one.selected_experts for one in alone]))
        torch.testing.assert_close(together.router_aux_loss, load_balancing_loss(frames, load), **KERNEL_NOISE)
        each = torch.stack([one.router_z_loss for one in alone]) * together.audio_lengths
        torch.testing.assert_close(together.router_z_loss, each.sum() / sum(lengths), **KERNEL_NOISE)
    for name in ("loss", "lm_loss", "quantity_loss", "ctc_loss", "router_aux_loss", "router_z_loss"):
        if getattr(together, name) is not None:
            torch.testing.assert_close(reordered[name], together[name], **KERNEL_NOISE)


@every_projector
def test_micro_batches_add_up_to_the_batch(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type, freeze_text=False)
    # The balance loss is not additive over micro-batches. Its share is tested below.
    model.config.projector_config.router_aux_loss_coef = 0.0
    model.config.projector_config.router_z_loss_coef = 0.0
    batch = training_batch(processor, recordings)
    num_items = torch.tensor(num_labels(batch))
    whole, outputs = backward(model, **batch)

    model.zero_grad()
    micro_outputs = []
    for rows in ([0], [1, 2]):
        micro_outputs.append(model(**rows_of(batch, rows), num_items_in_batch=num_items))
        micro_outputs[-1].loss.backward()
    for name in ("loss", "lm_loss", "quantity_loss", "ctc_loss"):
        if getattr(outputs, name) is not None:
            torch.testing.assert_close(sum(micro[name] for micro in micro_outputs), outputs[name], **KERNEL_NOISE)
    parameters = dict(model.named_parameters())
    for name, gradient in whole.items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("projector_type", ["moe", "moe_cif"])
def test_balance_losses_of_micro_batches_weigh_by_their_labels(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    num_items = num_labels(batch)
    for rows in ([0], [1, 2]):
        micro = rows_of(batch, rows)
        own, shared = model(**micro), model(**micro, num_items_in_batch=num_items)
        for name in ("router_aux_loss", "router_z_loss"):
            torch.testing.assert_close(shared[name], own[name] * num_labels(micro) / num_items)


@cif_projectors
def test_target_lengths_default_to_the_labels_without_the_end_token(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    explicit = model(**batch)
    implicit = model(**{name: value for name, value in batch.items() if name != "target_lengths"})
    assert implicit.audio_lengths.tolist() == batch["target_lengths"].tolist()
    torch.testing.assert_close(implicit.loss, explicit.loss)


@every_projector
def test_a_row_without_a_target_is_refused(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match=r"`labels` has no target in row\(s\) \[1\]"):
        model(**batch)


def test_an_empty_transcript_is_a_target(shared_model, recordings):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    outputs = model(**request(processor, recordings, transcription=["", "one", ""]))
    assert outputs.audio_lengths[0] == outputs.audio_lengths[2] == 0
    assert outputs.loss.isfinite()
    only_empty = model(**request(processor, recordings[:1], transcription=[""]))
    assert only_empty.loss.isfinite()


def test_recordings_for_which_cif_fires_nothing(parts, recordings):
    """The language model then sees only the prompt, and the quantity loss corrects CIF."""
    model, processor = compose(parts, "moe_cif")
    torch.nn.init.constant_(model.model.projector.cif.alpha_proj.bias, -30.0)
    assert model(**request(processor, recordings)).audio_lengths.tolist() == [0, 0, 0]
    assert generate(model, request(processor, recordings)).shape == (3, NUM_NEW_TOKENS)
    gradients, outputs = backward(model, **training_batch(processor, recordings))
    assert outputs.quantity_loss > 0.5
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_several_recordings_in_a_row(shared_model, recordings):
    """The labels do not determine their target lengths, so the caller must pass them."""
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    text = [processor.audio_token + "and" + processor.audio_token]
    batch = processor(text=text, audio=recordings[:2], transcription=["one two"])
    del batch["target_lengths"]
    with pytest.raises(ValueError, match="`target_lengths` must be passed"):
        model(**batch)
    outputs = model(**batch, target_lengths=torch.tensor([3, 4]))
    assert outputs.audio_lengths.tolist() == [3, 4]
    assert outputs.logits.shape[1] == batch["input_ids"].shape[1]


@pytest.mark.parametrize("freeze", [True, False])
@every_projector
def test_gradient_checkpointing_gives_the_same_gradients(parts, recordings, projector_type, freeze):
    model, processor = compose(parts, projector_type, freeze_audio=freeze, freeze_text=freeze)
    batch = training_batch(processor, recordings)
    model.train()
    plain, plain_outputs = backward(model, **batch)
    model.gradient_checkpointing_enable()
    model.train()
    checkpointed, outputs = backward(model, **batch)
    torch.testing.assert_close(outputs.loss, plain_outputs.loss)
    torch.testing.assert_close(checkpointed, plain, **KERNEL_NOISE)


def test_gradient_checkpointing_enables_no_dropout_in_a_frozen_language_model(parts, recordings):
    model, processor = compose(parts, "moe_cif")
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = training_batch(processor, recordings)
    expected = model.train()(**batch).loss
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model.train()(**batch).loss, expected)


@every_projector
def test_training_lowers_the_loss(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type)
    batch = training_batch(processor, recordings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_training_computes_logits_only_at_labels(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type, freeze_text=False)
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "cuatro"])
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    found = []
    for skip_logits in (True, False):
        model.zero_grad()
        outputs = model(**batch, skip_logits=skip_logits, num_items_in_batch=17)
        outputs.loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append((outputs.lm_loss, outputs.logits, gradients))
    (loss, logits, gradients), (expected_loss, expected_logits, expected_gradients) = found
    assert logits is None
    assert expected_logits is not None
    assert rows == [int((batch["labels"] != -100).sum()), expected_logits.shape[:-1].numel()]
    torch.testing.assert_close(loss, expected_loss)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)

    assert model(**batch).logits is not None
    assert (
        model(**{name: batch[name] for name in ("input_ids", "input_features")}, skip_logits=True).logits is not None
    )
    model.train()
    assert model(**batch).logits is None
