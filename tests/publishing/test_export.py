"""Front end and language model as separate parts, as in a serving engine."""

import pytest
import torch
from tiny_models import compose
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    TorchAoConfig,
)

from llm_asr import LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.export import export_for_serving
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.training.lora import add_lora


REQUESTS = [
    {},
    {"language": ["es", "English", None], "prompt": [None, "numbers: five, four", None]},
    {"identify_language": True},
]


def make(parts, projector_type, **kwargs):
    model, processor = compose(parts, projector_type, **kwargs)
    # Recordings get different, short limits.
    model.generation_config.max_new_tokens_per_second = 4.0
    return model, processor


def load(model_class, folder):
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def load_parts(folder):
    """Front end, its processor, and language model."""
    front_end = load(LlmAsrFrontEnd, folder / "front_end")
    text_model = load(AutoModelForCausalLM, folder / "language_model")
    return front_end, LlmAsrProcessor.from_pretrained(folder / "front_end"), text_model


def write(text_model, embeds, limits):
    """Generate greedy tokens for each row of embeddings up to its limit, only with Transformers."""
    masks = [torch.ones(len(row), dtype=torch.long) for row in embeds]
    tokens = text_model.generate(
        inputs_embeds=pad_sequence(embeds, batch_first=True, padding_side="left"),
        attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
        max_new_tokens=max(limits),
    )
    return [row[:limit] for row, limit in zip(tokens.tolist(), limits, strict=True)]


def strip(rows, pad):
    """Remove padding, which depends on the batch."""
    return [row[: max((end for end, token in enumerate(row, 1) if token != pad), default=0)] for row in rows]


def check_same_tokens(model, processor, folder, recordings, requests=REQUESTS):
    """Check that the parts in `folder` generate the same tokens as `model`, and return the tokens."""
    front_end, own_processor, text_model = load_parts(folder)
    pad = model.generation_config.pad_token_id
    found = []
    for request in requests:
        expected = model.generate(**processor.apply_transcription_request(recordings, **request)).tolist()
        prompts = front_end(**own_processor.apply_transcription_request(recordings, **request))
        embeds, limits = [prompt.inputs_embeds for prompt in prompts], [prompt.max_new_tokens for prompt in prompts]
        batch = write(text_model, embeds, limits)
        alone = [write(text_model, [row], [limit])[0] for row, limit in zip(embeds, limits, strict=True)]
        assert strip(batch, pad) == strip(expected, pad)
        assert strip(alone, pad) == strip(expected, pad)
        found += strip(expected, pad)
    return found


@pytest.mark.parametrize(
    ("projector_type", "text"),
    [
        ("conv", "qwen2"),
        ("moe", "qwen2-tied"),
        ("cif", "qwen2-tied"),
        ("moe_cif", "qwen2"),
        ("moe_cif", "qwen2-tied"),
        ("stack", "qwen2"),
        ("moe_qformer", "qwen2"),
        ("ctc", "qwen2"),
    ],
)
def test_the_exported_parts_give_the_output_of_the_model(parts, recordings, tmp_path, projector_type, text):
    model, processor = make(parts, projector_type, text=text)
    export_for_serving(model, processor, tmp_path / "out")
    found = check_same_tokens(model, processor, tmp_path / "out", recordings)
    # The transcripts must differ, or the test would pass with any model.
    assert len({tuple(row) for row in found}) > 6
    assert len({len(row) for row in found}) > 1


@pytest.mark.parametrize(
    ("audio", "text", "options"),
    [
        ("wav2vec2-bert", "llama", {"draft_head": True}),
        ("parakeet", "qwen2", {"routing_level": "utterance", "num_shared_experts": 1}),
        ("whisper", "llama", {"encoder_padding": "max_length"}),
        ("whisper", "llama", {"encoder_attention": "chunked", "encoder_chunk_s": 0.4}),
    ],
)
def test_other_encoders_language_models_and_options(parts, recordings, tmp_path, audio, text, options):
    model, processor = make(parts, "moe_cif", audio=audio, text=text, **options)
    export_for_serving(model, processor, tmp_path / "out")
    check_same_tokens(model, processor, tmp_path / "out", recordings, requests=[{}])


def test_lora_is_merged_and_the_model_is_not_changed(parts, recordings, tmp_path):
    untrained, processor = make(parts, "moe_cif")
    model, _ = make(parts, "moe_cif")
    adapted = add_lora(model, rank=2, dropout=0.0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.eval()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    export_for_serving(adapted, processor, tmp_path / "out")
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
    found = check_same_tokens(adapted, processor, tmp_path / "out", recordings, requests=[{}])
    tokens = untrained.generate(**processor.apply_transcription_request(recordings)).tolist()
    assert found != strip(tokens, untrained.generation_config.pad_token_id)
    with pytest.raises(ValueError, match="has adapters loaded into it"):
        export_for_serving(adapted.get_base_model(), processor, tmp_path / "other")


@pytest.mark.parametrize("text", ["qwen2", "qwen2-tied"])
def test_each_part_contains_only_what_it_needs(parts, tmp_path, text):
    model, processor = make(parts, "cif", text=text, draft_head=True)
    export_for_serving(model, processor, tmp_path / "out")
    front_end, _, text_model = load_parts(tmp_path / "out")

    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    whole = model.model
    embedding = whole.get_input_embeddings()
    assert count(front_end) == count(whole.audio_tower, whole.projector, embedding, model.draft_head)
    head = 0 if text == "qwen2-tied" else count(model.lm_head)
    assert count(text_model) == count(whole.language_model) + head
    assert not any("layers." in name for name, _ in front_end.language_model.named_modules())
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.suffix for file in written if file.name != "SHA256SUMS"} == {".json", ".jinja", ".safetensors"}
    assert type(AutoModel.from_pretrained(tmp_path / "out" / "front_end")) is LlmAsrFrontEnd
    assert type(AutoProcessor.from_pretrained(tmp_path / "out" / "front_end")) is LlmAsrProcessor
    with pytest.raises(ValueError, match="LlmAsrFrontEndConfig"):
        AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out" / "front_end")


@pytest.mark.parametrize("text", ["qwen2", "llama"])
def test_language_model_tokenizer_and_settings_agree(parts, tmp_path, text):
    model, processor = make(parts, "conv", text=text)
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, 1]
    model.generation_config.suppress_tokens = [5]
    export_for_serving(model, processor, tmp_path / "out")
    folder = tmp_path / "out" / "language_model"
    text_model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vocab_size = text_model.config.vocab_size
    assert len(tokenizer) == vocab_size == text_model.get_input_embeddings().weight.shape[0]
    assert vocab_size == text_model.get_output_embeddings().weight.shape[0]
    assert tokenizer.convert_tokens_to_ids(processor.audio_token) == processor.audio_token_id
    for settings in (text_model.config, text_model.generation_config):
        assert settings.eos_token_id == [processor.tokenizer.eos_token_id, 1]
        assert settings.pad_token_id == processor.tokenizer.pad_token_id
    assert text_model.generation_config.suppress_tokens == [5]
    assert not hasattr(text_model.generation_config, "transcription_prompt_ids")
    assert not hasattr(text_model.generation_config, "max_new_tokens_per_second")
    (prompt,) = processor.apply_transcription_request("", tokenize=False)
    message = {"role": "user", "content": f"{processor.audio_token}Transcribe the speech."}
    rendered = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert rendered == prompt


def test_precision_is_kept(parts, recordings, tmp_path):
    model, processor = make(parts, "moe_cif", text_kwargs={"dtype": torch.bfloat16})
    export_for_serving(model, processor, tmp_path / "out")
    front_end, own_processor, text_model = load_parts(tmp_path / "out")
    assert text_model.dtype == torch.bfloat16
    prompts = front_end(**own_processor.apply_transcription_request(recordings))
    merged, _ = model.model.merge_audio_and_text(**processor.apply_transcription_request(recordings))
    assert merged.inputs_embeds.dtype == torch.bfloat16
    for prompt, row, mask in zip(prompts, merged.inputs_embeds, merged.attention_mask, strict=True):
        torch.testing.assert_close(prompt.inputs_embeds.bfloat16(), row[mask.bool()])
    embeds = front_end.bfloat16()(**own_processor.apply_transcription_request(recordings))[0].inputs_embeds
    assert embeds.dtype == torch.bfloat16


def test_exported_prompts_have_the_data_that_an_engine_needs(parts, recordings, tmp_path):
    model, processor = make(parts, "cif")
    inputs = processor.apply_transcription_request(recordings)
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    export_for_serving(model, processor, tmp_path / "out")
    front_end, _, _ = load_parts(tmp_path / "out")
    prompts = front_end(**inputs)
    # A view of a batch would send the whole batch to an engine.
    assert all(prompt.inputs_embeds.untyped_storage().nbytes() == prompt.inputs_embeds.nbytes for prompt in prompts)
    assert not any(prompt.inputs_embeds.requires_grad for prompt in prompts)
    assert front_end.config.projector_frame_period == model.config.projector_frame_period
    for prompt, alphas in zip(prompts, outputs.alphas, strict=True):
        assert torch.allclose(prompt.alphas, alphas)
    cached, mask = front_end.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    again = front_end(**text, audio_hidden_states=cached, audio_hidden_states_mask=mask)
    assert all(torch.equal(one.inputs_embeds, other.inputs_embeds) for one, other in zip(prompts, again, strict=True))
    with pytest.raises(ValueError, match="one audio token in every row"):
        front_end(**{**inputs, "input_ids": inputs["input_ids"].repeat(1, 2)})


@pytest.mark.parametrize(("per_second", "at_most", "expected"), [(None, None, None), (None, 7, 7), (4.0, 7, 7)])
def test_exported_prompts_have_the_limits_of_length(parts, recordings, tmp_path, per_second, at_most, expected):
    model, processor = make(parts, "conv")
    model.generation_config.max_new_tokens_per_second = per_second
    model.generation_config.max_new_tokens = at_most
    export_for_serving(model, processor, tmp_path / "out")
    front_end, _, text_model = load_parts(tmp_path / "out")
    prompts = front_end(**processor.apply_transcription_request(recordings))
    assert [prompt.max_new_tokens for prompt in prompts] == [expected] * len(recordings)
    assert text_model.generation_config.max_new_tokens == at_most


def test_an_export_overwrites_nothing_and_is_complete_or_absent(parts, tmp_path, monkeypatch):
    model, processor = make(parts, "conv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for taken in ("mine", "mine/notes.txt"):
        with pytest.raises(ValueError, match="exists already"):
            export_for_serving(model, processor, tmp_path / taken)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        # The processor is written last.
        patch.setattr(LlmAsrProcessor, "save_pretrained", fail)
        with pytest.raises(OSError, match="no space left"):
            export_for_serving(model, processor, tmp_path / "new" / "out")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["mine", "new", "notes.txt"]
    (tmp_path / "new" / "out").mkdir()
    export_for_serving(model, processor, tmp_path / "new" / "out")
    assert {file.name for file in (tmp_path / "new" / "out").iterdir()} == {"front_end", "language_model"}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out"]


def test_a_quantized_model_is_refused(parts, tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    model, processor = make(parts, "conv", text_kwargs={"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())})
    for quantized in (model, add_lora(model, rank=2)):
        with pytest.raises(ValueError, match="`model` is quantized"):
            export_for_serving(quantized, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_processor_of_another_model_is_refused(parts, tmp_path):
    model, processor = make(parts, "conv")
    processor.audio_token_id = 7
    own = model.config.audio_token_id
    with pytest.raises(ValueError, match=rf"the processor is 7 .* of the model is {own}; use the processor"):
        export_for_serving(model, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tokens_without_an_embedding_are_named(parts, tmp_path, caplog):
    model, processor = make(parts, "conv")
    export_for_serving(model, processor, tmp_path / "one")
    assert "no embedding" not in caplog.text
    processor.tokenizer.add_tokens(["one-too-many"])
    export_for_serving(model, processor, tmp_path / "other")
    assert "no embeddings for the tokens ['one-too-many']" in caplog.text


def test_an_adapter_is_merged_into_the_export(parts, recordings, tmp_path):
    model, processor = make(parts, "cif")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    adapted = add_lora(model.from_pretrained(tmp_path / "base"), rank=2)
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
    save_checkpoint(adapted, processor, tmp_path / "adapter", form="adapter")
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    check_same_tokens(adapted.eval(), processor, tmp_path / "out", recordings, requests=[{}])


def test_command_line(parts, recordings, tmp_path, capsys):
    model, processor = make(parts, "moe")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        str(tmp_path / "out" / part) for part in ("front_end", "language_model")
    ]
    check_same_tokens(model, processor, tmp_path / "out", recordings, requests=[{}])
    for arguments, message in [
        (command, "exists already"),
        (["export", parts["whisper"], str(tmp_path / "other")], "is that of a model of type 'whisper'"),
        (["export", str(tmp_path / "absent"), str(tmp_path / "other")], "absent"),
    ]:
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("llm-asr export: error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()
