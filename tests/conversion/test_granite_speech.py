"""
Granite Speech without its feature extractor, which needs torchaudio: weights, prompt and LoRA. `test_speech_llm.py` has the rest where
there is torchaudio.
"""

import pytest
import torch
from peft import LoraConfig
from tiny_speech_llms import make_granite_config, make_granite_tokenizer, save_model
from transformers import PreTrainedModel, SeamlessM4TFeatureExtractor

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.modeling.speech_llm_families import FAMILIES
from llm_asr.processing.source_processor import CHAT_TEMPLATE
from llm_asr.processing.source_prompt import write_transcription_template


NUM_TOKENS = 8


@pytest.fixture(scope="module")
def processor():
    """With another feature extractor, whose features have the same size."""
    tokenizer = make_granite_tokenizer()
    template = write_transcription_template(
        FAMILIES["granite_speech"], tokenizer.chat_template, tokenizer.special_tokens_map, "<|audio|>"
    )
    return LlmAsrProcessor(
        SeamlessM4TFeatureExtractor(),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        feature_layout="time_first",
        samples_per_feature=320,
        transcription_template=template,
    )


@pytest.mark.parametrize(
    ("options", "request_text"),
    [
        ({}, "can you transcribe the speech into a written format?"),
        ({"language": "es"}, "can you transcribe the speech in Spanish into a written format?"),
        ({"prompt": "what is said?"}, "what is said?"),
    ],
)
def test_prompt_is_that_of_the_chat_template(processor, options, request_text):
    content = [{"type": "audio"}, {"type": "text", "text": request_text}]
    expected = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert processor.apply_transcription_request([""], **options, tokenize=False) == [expected]


@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("num_frames", [150, 83, 27])
@torch.no_grad()
def test_embeddings_logits_and_tokens_are_those_of_the_source(processor, tmp_path, num_frames, adapts):
    torch.manual_seed(0)
    source = save_model(str(tmp_path), make_granite_config(processor.tokenizer), processor.tokenizer)
    if adapts:
        try:
            source.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        except ValueError as error:
            # This version of Transformers may need a newer PEFT.
            pytest.skip(str(error))
        # The class's own method would write the base once more, with other names.
        PreTrainedModel.save_pretrained(source, str(tmp_path))
        assert (tmp_path / "adapter_model.safetensors").is_file()
    source.eval()
    model = LlmAsrForConditionalGeneration.from_speech_llm(str(tmp_path), processor=processor)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    features = torch.randn(1, num_frames, 160)
    found = model.get_audio_features(features, torch.ones(1, num_frames))
    embeds = source.get_audio_features(features).pooler_output[0]
    torch.testing.assert_close(found.pooler_output, embeds, rtol=1e-5, atol=1e-5)
    inputs = processor.tokenize_requests(processor.apply_transcription_request([""], tokenize=False))
    inputs = {**inputs, "input_features": features, "input_features_mask": torch.ones(1, num_frames, dtype=torch.long)}
    audio_token_id = processor.audio_token_id
    ids = [one for one in inputs["input_ids"][0].tolist() for _ in range(len(embeds) if one == audio_token_id else 1)]
    asked = {"input_ids": torch.tensor([ids]), "input_features": features}
    logits = source(**asked).logits[0, -1]
    # Granite divides its logits, which Transformers' class of Granite Speech leaves out.
    found = model(**inputs).logits[0, -1, : len(logits)] * model.config.text_config.logits_scaling
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    options = {"do_sample": False, "max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    answer = source.generate(**asked, **options)[0, len(ids) :]
    assert model.generate(**inputs, **options)[0, -NUM_TOKENS:].tolist() == answer.tolist()
