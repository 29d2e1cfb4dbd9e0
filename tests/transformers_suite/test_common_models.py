"""
Runs Transformers' common tests of audio language models on our model with every projector.

Transformers' wheel does not contain these tests. `make test-transformers` downloads the tests of the installed version and runs
this file. TRANSFORMERS_TESTS names the folder that contains `tests`.
"""

import os
import sys
import unittest
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, WhisperConfig
from transformers.models.auto import modeling_auto

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration, LlmAsrModel


if "TRANSFORMERS_TESTS" not in os.environ:
    pytest.skip("Transformers' own tests are not here: run `make test-transformers`", allow_module_level=True)
FOLDER = Path(os.environ["TRANSFORMERS_TESTS"]).resolve()
sys.path[:0] = [str(FOLDER), str(FOLDER / "utils")]

from tests.alm_tester import ALMModelTest, ALMModelTester  # noqa: E402


# Transformers' tests choose labels and expectations with these tables of class names, so add our classes.
for table in (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
):
    getattr(modeling_auto, table)[LlmAsrConfig.model_type] = LlmAsrForConditionalGeneration.__name__
modeling_auto.MODEL_MAPPING_NAMES[LlmAsrConfig.model_type] = LlmAsrModel.__name__

SIZES = {"hidden_size": 32, "intermediate_size": 32}
EXPERT_SIZES = {"hidden_size": 32, "expert_hidden_size": 32, "num_experts": 2, "num_experts_per_tok": 2}


def halve(num_frames: torch.Tensor) -> torch.Tensor:
    """Number of frames after a convolution of stride 2."""
    return (num_frames - 1) // 2 + 1


class LlmAsrModelTester(ALMModelTester):
    """Tiny models of one projector, and inputs for them."""

    config_class = LlmAsrConfig
    base_model_class = LlmAsrModel
    conditional_generation_class = LlmAsrForConditionalGeneration
    text_config_class = Qwen2Config
    audio_config_class = WhisperConfig
    audio_config_key = "audio_config"
    audio_mask_key = "input_features_mask"
    projector_config: dict

    def __init__(self, parent, **kwargs):
        super().__init__(parent, **{"seq_length": 20, "feat_seq_length": 64, "num_mel_bins": 80, **kwargs})

    def get_text_config(self):
        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
        )

    def get_audio_config(self):
        return WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=self.num_mel_bins,
            num_hidden_layers=2,
            max_source_positions=self.feat_seq_length // 2,
            vocab_size=self.vocab_size,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            decoder_start_token_id=self.bos_token_id,
        )

    def get_config(self):
        return LlmAsrConfig(
            audio_config=self.get_audio_config(),
            text_config=self.get_text_config(),
            projector_config=self.projector_config,
            audio_token_id=self.audio_token_id,
            pad_token_id=self.pad_token_id,
        )

    def create_audio_mask(self):
        # Recordings have no gaps: real frames come first.
        return torch.ones(self.batch_size, self.feat_seq_length, dtype=torch.long)

    def get_audio_embeds_mask(self, audio_mask):
        # Whisper halves the number of mel frames, and projectors keep a quarter of Whisper's frames. CIF fires the target length.
        lengths = halve(halve(halve(audio_mask.sum(-1))))
        return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


class CommonTests(ALMModelTest):
    all_model_classes = (LlmAsrModel, LlmAsrForConditionalGeneration)
    # Pipeline tests need a processor and a tokenizer from the Hub. tests/processing has our pipeline tests.
    pipeline_model_mapping: dict = {}

    def _audio_features_get_expected_num_attentions(self, model_tester=None):
        return 2

    @unittest.skip("Audio tokens in `inputs_embeds` are replaced by audio, as in all audio models of Transformers.")
    def test_inputs_embeds_matches_input_ids(self):
        pass


class TestConv(CommonTests, unittest.TestCase):
    class model_tester_class(LlmAsrModelTester):
        projector_config = {"projector_type": "conv", **SIZES}


class TestMoe(CommonTests, unittest.TestCase):
    class model_tester_class(LlmAsrModelTester):
        projector_config = {"projector_type": "moe", **EXPERT_SIZES}


class TestCif(CommonTests, unittest.TestCase):
    class model_tester_class(LlmAsrModelTester):
        projector_config = {"projector_type": "cif", **SIZES}


class TestMoeCif(CommonTests, unittest.TestCase):
    class model_tester_class(LlmAsrModelTester):
        projector_config = {"projector_type": "moe_cif", **EXPERT_SIZES}


# The base classes have no projector, so pytest must not collect them.
del CommonTests, ALMModelTest
