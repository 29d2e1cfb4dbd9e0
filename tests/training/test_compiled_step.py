"""The loss of a batch compiles as one graph, in float32 and bfloat16."""

import pytest
import torch
from tiny_models import compose

from llm_asr.training.data_collator import LlmAsrDataCollator


TEXTS = ["one", "uno dos tres cuatro", "two three"]
DRAFT = {"draft_head": True}


def compare(parts, recordings, projector_type, dtype, backend, options):
    """Compare losses and gradients of compiled and eager steps, for batches of two sizes."""
    model, processor = compose(parts, projector_type, **options)
    model.freeze_audio_tower()
    model.freeze_language_model()
    model.to(dtype).train()
    collate = LlmAsrDataCollator(processor, numbers=True)
    rows = [{"audio": audio, "text": text, "language": "en"} for audio, text in zip(recordings, TEXTS, strict=True)]
    torch._dynamo.reset()
    compiled = torch.compile(lambda **batch: model(**batch).loss, backend=backend, fullgraph=True, dynamic=True)
    for chosen in (rows, rows[:0:-1]):
        batch = dict(collate(chosen))
        batch["input_features"] = batch["input_features"].to(dtype)
        batch["num_items_in_batch"] = (batch["labels"] != -100).sum()
        gradients = []
        losses = [model(**batch).loss, compiled(**batch)]
        for loss in losses:
            model.zero_grad()
            loss.backward()
            gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(losses[1], losses[0], **tolerance)
        expected, found = gradients
        assert found.keys() == expected.keys()
        assert any(gradient.any() for gradient in found.values())
        for name, gradient in expected.items():
            difference = (found[name] - gradient).float().norm() / gradient.float().norm().clamp(min=1e-6)
            assert difference < (1e-3 if dtype == torch.float32 else 0.1), name


def test_the_loss_is_one_graph(parts, recordings):
    compare(parts, recordings, "moe_cif", torch.bfloat16, "eager", DRAFT)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("projector_type", "options"), [("conv", {}), ("moe", {}), ("stack", {}), ("cif", DRAFT), ("moe_cif", DRAFT)]
)
def test_forward_and_backward_are_one_graph_each(parts, recordings, projector_type, dtype, options):
    # Experts that no grouped product takes are padded to the largest group, whose size is such a scalar.
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compare(parts, recordings, projector_type, dtype, "aot_eager", options)
