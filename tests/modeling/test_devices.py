"""Models with parts on several devices, as with `device_map="auto"`."""

import copy

import pytest
import torch
from second_device import FIRST, SECOND, place, two_devices, unwrap
from tiny_models import compose


PARTS = ("model.audio_tower", "model.projector", "model.language_model", "lm_head", "draft_head")


def inputs_of(processor, recordings):
    return processor.apply_transcription_request(
        recordings, language="en", transcription=["one", "two three", "four five six"]
    )


@pytest.mark.parametrize("audio", ["whisper", "wav2vec2-bert", "parakeet"])
@pytest.mark.parametrize("projector", ["conv", "moe", "cif", "moe_cif"])
@pytest.mark.parametrize("second", [("model.projector",), ("model.language_model",), ("lm_head", "draft_head")])
def test_parts_may_be_on_two_devices(parts, recordings, audio, projector, second):
    options = {"router_bias_update_rate": 0.01} if "moe" in projector else {}
    options |= {"draft_head": True} if "cif" in projector else {}
    model, processor = compose(parts, projector, audio=audio, text="qwen2", **options)
    inputs = inputs_of(processor, recordings)
    prompt = processor.apply_transcription_request(recordings, language="en")
    generation = {
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
        "output_confidence": True,
    }
    expected = model(**inputs), model.generate(**prompt, **generation)
    # Training changes the bias of the router, so use a copy.
    trained = copy.deepcopy(model).train()(**inputs).loss.item()

    with two_devices():
        for name in PARTS:
            module = model.get_submodule(name) if name != "draft_head" or model.draft_head is not None else None
            if module is not None:
                place(module, SECOND if name in second else FIRST)
        outputs, written = model(**inputs), model.generate(**prompt, **generation)
        loss = model.train()(**inputs).loss
        torch.testing.assert_close(unwrap(outputs.logits), expected[0].logits)
        torch.testing.assert_close(unwrap(outputs.loss), expected[0].loss)
        assert torch.equal(unwrap(written.sequences), expected[1].sequences)
        torch.testing.assert_close(unwrap(written.avg_logprobs), expected[1].avg_logprobs)
        assert loss.item() == pytest.approx(trained, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
def test_device_map(parts, recordings, tmp_path):
    from llm_asr import LlmAsrForConditionalGeneration

    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.save_pretrained(tmp_path)
    device_map = {"model.audio_tower": 0, "model.projector": "cpu", "model.language_model": 0, "lm_head": 0}
    split = LlmAsrForConditionalGeneration.from_pretrained(tmp_path, device_map={**device_map, "draft_head": "cpu"})
    inputs = inputs_of(processor, recordings)
    torch.testing.assert_close(split(**inputs.to(0)).loss.cpu(), model(**inputs.to("cpu")).loss, atol=1e-3, rtol=1e-3)
