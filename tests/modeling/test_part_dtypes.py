"""Saving, loading and running parts with different dtypes."""

import itertools

import pytest
import torch
from tiny_models import compose
from transformers import AutoModel, AutoModelForSpeechSeq2Seq

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel, LlmAsrPipeline
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.modeling.part_dtypes import count_part_dtypes
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.training.lora import add_lora


# The dtypes of the published Whisper-large-v3 and Qwen2.5, and of a projector that was trained in float32.
MIXED = {"audio_config": torch.float16, "projector_config": torch.float32, "text_config": torch.bfloat16}


def compose_mixed(parts, projector_type="moe_cif", dtypes=MIXED, **kwargs):
    model, processor = compose(
        parts,
        projector_type,
        audio_kwargs={"dtype": dtypes["audio_config"]},
        text_kwargs={"dtype": dtypes["text_config"]},
        **kwargs,
    )
    for module in (model.model.projector, model.draft_head):
        if module is not None:
            module.to(dtypes["projector_config"])
    return model, processor


def part_dtypes(model):
    return count_part_dtypes((name, tensor.dtype, tensor.numel()) for name, tensor in model.named_parameters())


@pytest.fixture(scope="module")
def mixed(parts, tmp_path_factory):
    """A mixed model, its processor, and its folder in each form."""
    root = tmp_path_factory.mktemp("mixed")
    model, processor = compose_mixed(parts, draft_head=True, router_bias_update_rate=0.001)
    save_checkpoint(model, processor, root / "full")
    save_checkpoint(model, processor, root / "slim", form="slim")
    peft_model = add_lora(LlmAsrForConditionalGeneration.from_pretrained(root / "full"), rank=2)
    save_checkpoint(peft_model, processor, root / "adapter", form="adapter")
    return model, processor, root


@pytest.mark.parametrize("form", ["full", "slim", "adapter"])
def test_parts_keep_the_dtype_they_were_saved_in(mixed, form):
    model, _, root = mixed
    loaded = LlmAsrForConditionalGeneration.from_pretrained(root / form)
    assert part_dtypes(loaded) == MIXED
    assert {part: getattr(loaded.config, part).dtype for part in MIXED} == MIXED
    assert loaded.model.projector.moe.balance.e_score_correction_bias.dtype == torch.float32
    expected = model.state_dict()
    wrapped = (".base_layer", ".modules_to_save.default")
    found = loaded.state_dict()
    for part in wrapped:
        found = {name.replace(part, ""): tensor for name, tensor in found.items()}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_parts_keep_their_dtype_through_the_auto_classes_and_the_pipeline(mixed):
    _, _, root = mixed
    assert part_dtypes(AutoModelForSpeechSeq2Seq.from_pretrained(root / "full", dtype="auto")) == MIXED
    headless = AutoModel.from_pretrained(root / "full")
    assert type(headless) is LlmAsrModel
    assert part_dtypes(headless) == MIXED


def test_shards_and_parts_cast_after_loading_keep_their_dtype(mixed, tmp_path):
    _, _, root = mixed
    model = LlmAsrForConditionalGeneration.from_pretrained(root / "full")
    model.model.language_model.half()
    model.lm_head.half()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert part_dtypes(LlmAsrForConditionalGeneration.from_pretrained(tmp_path)) == {
        **MIXED,
        "text_config": torch.float16,
    }


@pytest.mark.parametrize("form", ["full", "slim", "adapter"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, dict.fromkeys(MIXED, torch.float32)),
        ("bfloat16", dict.fromkeys(MIXED, torch.bfloat16)),
        ({"text_config": "float32"}, {**MIXED, "text_config": torch.float32}),
        ({"audio_config": torch.bfloat16, "": "float32"}, {**dict.fromkeys(MIXED, torch.float32), "audio_config": torch.bfloat16}),
    ],
)  # fmt: skip
def test_dtype_overrides_the_saved_dtypes(mixed, form, dtype, expected):
    _, _, root = mixed
    loaded = LlmAsrForConditionalGeneration.from_pretrained(root / form, dtype=dtype)
    assert part_dtypes(loaded) == expected


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ({"audio_tower": "float32"}, r"`dtype` has the keys \['audio_tower'\]; a mapping may have \['audio_config'"),
        ("float33", "`dtype` must be a floating point dtype, its name or 'auto', got 'float33'"),
        (torch.int8, "`dtype` must be a floating point dtype"),
    ],
)
def test_an_impossible_dtype_is_refused(mixed, dtype, message):
    _, _, root = mixed
    with pytest.raises(ValueError, match=message):
        LlmAsrForConditionalGeneration.from_pretrained(root / "full", dtype=dtype)


HALVES = (torch.float16, torch.bfloat16)
MIXES = [
    dict(zip(MIXED, dtypes, strict=True))
    for dtypes in itertools.product((torch.float32, *HALVES), repeat=3)
    if len(set(dtypes)) > 1
]


def inputs_of(processor, recordings):
    return processor.apply_transcription_request(
        recordings, language="en", transcription=["one", "two three", "four five six"][: len(recordings)]
    )


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(dtype)[6:] for dtype in mix.values()))
def test_every_mix_of_dtypes_trains_and_transcribes(parts, recordings, dtypes):
    model, processor = compose_mixed(parts, dtypes=dtypes, draft_head=True)
    model.train()
    outputs = model(**inputs_of(processor, recordings))
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert model.model.projector.moe.experts.up_proj.grad.isfinite().all()
    model.eval()
    inputs = processor.apply_transcription_request(recordings[:1], language="en")
    plain = model.generate(**inputs, max_new_tokens=4, output_confidence=True, return_dict_in_generate=True)
    drafted = model.generate(**inputs, max_new_tokens=4, use_draft=True)
    assert plain.avg_logprobs.isfinite().all()
    # In half precision, a pass over several tokens has other rounding errors than a pass for each token.
    if dtypes["text_config"] == torch.float32:
        assert plain.sequences.tolist() == drafted.tolist()


@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
@pytest.mark.parametrize("autocast_dtype", HALVES)
def test_autocast_runs_a_mixed_model(parts, recordings, projector_type, autocast_dtype):
    model, processor = compose_mixed(parts, projector_type)
    model.train()
    with torch.autocast("cpu", autocast_dtype):
        loss = model(**inputs_of(processor, recordings)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.model.projector.parameters() if parameter.grad is not None)  # fmt: skip


def test_the_pipeline_runs_a_mixed_model(mixed, recordings):
    _, processor, root = mixed
    model = LlmAsrForConditionalGeneration.from_pretrained(root / "slim")
    transcriber = LlmAsrPipeline(model, processor=processor)
    assert set(transcriber(recordings[0], max_new_tokens=3)) == {"text", "language", "languages"}
