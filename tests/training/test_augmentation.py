"""Augmentation of recordings."""

import numpy as np
import pytest
import torch
from speech_files import write_speech_dataset
from tiny_models import compose, make_tokenizer
from torch.utils.data import DataLoader
from transformers import (
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from llm_asr import LlmAsrConfig, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.training.arguments import DataArguments, LlmAsrTrainingArguments
from llm_asr.training.augmentation import Augmentation, SpecAugment, SpeedPerturbation
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.trainer import LlmAsrTrainer


def make_processor(audio_config, feature_extractor):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|audio|>"]})
    settings = LlmAsrConfig.describe_speech_encoder(audio_config, feature_extractor)
    return LlmAsrProcessor(feature_extractor, tokenizer, **settings)


# Processors with the number of mel frames that they stack into one frame.
PROCESSORS = {
    "whisper": (make_processor(WhisperConfig(), WhisperFeatureExtractor()), 1),
    "wav2vec2-bert": (make_processor(Wav2Vec2BertConfig(), SeamlessM4TFeatureExtractor()), 2),
    "parakeet": (make_processor(ParakeetEncoderConfig(), ParakeetFeatureExtractor()), 1),
}
WHISPER, _ = PROCESSORS["whisper"]


def make_features(spec_augment, num_stacked=1, num_frames=(300, 120), num_bins=80):
    """Features with all different values, so that masked values are recognisable."""
    torch.manual_seed(0)
    mask = (torch.arange(max(num_frames)) < torch.tensor(num_frames)[:, None]).long()
    size = num_bins * num_stacked
    features = torch.randn(len(num_frames), size, max(num_frames)) + 3.0
    features = features.masked_fill(mask[:, None] == 0, 0.0)
    return features if spec_augment.is_time_last else features.transpose(1, 2), mask


@pytest.mark.parametrize("name", PROCESSORS)
def test_masked_spans_of_time_and_frequency_have_the_mean(name):
    processor, num_stacked = PROCESSORS[name]
    spec_augment = SpecAugment(processor, max_time_seconds=0.5)
    features, mask = make_features(spec_augment, num_stacked)
    draws = torch.rand(2, spec_augment.num_draws, dtype=torch.float64)
    masked = spec_augment(features, mask, draws)
    if not spec_augment.is_time_last:
        features, masked = features.transpose(1, 2), masked.transpose(1, 2)
    for row, num_frames in enumerate((300, 120)):
        real, before = masked[row, :, :num_frames], features[row, :, :num_frames]
        assert torch.equal(masked[row, :, num_frames:], features[row, :, num_frames:])
        hidden = real != before
        assert torch.allclose(real[hidden], before.mean())
        frames, bins = hidden.all(0), hidden.all(1)
        # Masks cover only whole frames and whole bins.
        assert torch.equal(hidden, frames[None] | bins[:, None])
        longest = int(min(0.2 * num_frames, 0.5 * 100 / num_stacked))
        assert 0 < frames.sum() <= 2 * longest
        # A masked mel bin is masked in all stacked frames.
        bins = bins.unflatten(0, (num_stacked, -1))
        assert torch.equal(bins[0], bins[-1])
        assert 0 < bins[0].sum() <= 2 * 27


def test_masks_of_a_recording_depend_only_on_its_own_draws():
    spec_augment = SpecAugment(WHISPER)
    features, mask = make_features(spec_augment)
    draws = torch.rand(2, spec_augment.num_draws, dtype=torch.float64)
    together = spec_augment(features, mask, draws)
    alone = spec_augment(features[1:, :, :120], mask[1:, :120], draws[1:])
    assert torch.allclose(together[1:, :, :120], alone)


def test_extreme_draws_stay_within_the_recording():
    spec_augment = SpecAugment(WHISPER, max_time_share=1.0, max_time_seconds=100.0)
    features, mask = make_features(spec_augment)
    for draw in (0.0, np.nextafter(1.0, 0.0)):
        masked = spec_augment(features, mask, torch.full((2, spec_augment.num_draws), draw, dtype=torch.float64))
        hidden = (masked != features).any(1)
        assert not hidden[1, 120:].any()
        assert hidden.any() == (draw > 0)


def tone(seconds=1.0, frequency=440.0):
    return np.sin(2 * np.pi * frequency * np.arange(int(16000 * seconds)) / 16000).astype(np.float32)


def loudest_frequency(waveform):
    return np.argmax(np.abs(np.fft.rfft(waveform))) * 16000 / len(waveform)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.9), (0.5, 1.0), (0.99, 1.1)])
def test_speed_changes_length_and_pitch(draw, factor):
    perturbed = SpeedPerturbation()(tone(), draw)
    assert perturbed.dtype == np.float32
    assert len(perturbed) == pytest.approx(16000 / factor, abs=1)
    assert loudest_frequency(perturbed) == pytest.approx(440 * factor, abs=2)


def test_drawn_speeds_keep_the_duration_within_the_bounds():
    speeds = SpeedPerturbation((0.5, 1.0, 2.0))
    assert {len(speeds(tone(), draw, max_samples=16000)) for draw in (0.0, 0.4, 0.6, 0.9)} == {16000, 8000}
    assert {len(speeds(tone(), draw, min_samples=16000)) for draw in (0.0, 0.4, 0.6, 0.9)} == {16000, 32000}
    assert len(SpeedPerturbation((0.5,))(tone(), 0.0, max_samples=16000)) == 16000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpeedPerturbation(()), "`factors` must be one or more positive speeds"),
        (lambda: SpeedPerturbation((1.0, 0.0)), "`factors` must be one or more positive speeds"),
        (lambda: SpecAugment(WHISPER, num_time_masks=-1), "`num_time_masks` must not be negative"),
        (lambda: SpecAugment(WHISPER, max_time_share=1.5), "`max_time_share` must be a share"),
        (lambda: SpecAugment(WHISPER, max_time_seconds=-1.0), "`max_time_seconds` must not be negative"),
        (lambda: Augmentation(seed=-1), "`seed` must not be negative"),
        (lambda: DataArguments(spec_augment=True, feature_cache="cache"), "use one or the other"),
        (lambda: DataArguments(speed_perturbation=[1.1], feature_cache="cache"), "use one or the other"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_waveforms_have_no_mel_bins_to_mask():
    processor = make_processor(Wav2Vec2Config(), Wav2Vec2FeatureExtractor())
    with pytest.raises(ValueError, match="takes waveforms; use speed perturbation"):
        SpecAugment(processor)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_asr_dataset(str(write_speech_dataset(tmp_path_factory.mktemp("speech"))))


@pytest.fixture(scope="module")
def composed(parts):
    return compose(parts, "moe_cif")


def make_collator(processor, seed=0):
    augmentation = Augmentation(SpeedPerturbation(), SpecAugment(processor), seed)
    return LlmAsrDataCollator(processor, augmentation=augmentation)


def test_augmentation_is_independent_of_the_batch_and_differs_between_epochs(composed, dataset):
    rows = dataset.to_list()
    collator = make_collator(composed[1])
    together = collator(rows)
    frames = together["input_features_mask"].sum(1)
    assert len(set(frames.tolist())) > 3
    alone = collator(rows[2:3])
    assert torch.allclose(together["input_features"][2, :, : frames[2]], alone["input_features"][0, :, : frames[2]])
    collator.augmentation.set_epoch(1)
    assert not torch.equal(collator(rows[2:3])["input_features"], alone["input_features"])
    collator.augmentation.set_epoch(0)
    assert torch.equal(collator(rows[2:3])["input_features"], alone["input_features"])
    assert not torch.equal(make_collator(composed[1], seed=1)(rows[2:3])["input_features"], alone["input_features"])


def test_persistent_workers_receive_the_epoch(composed, dataset):
    collator = make_collator(composed[1])
    loader = DataLoader(dataset, 8, collate_fn=collator, num_workers=1, persistent_workers=True)
    first = next(iter(loader))["input_features"]
    collator.augmentation.set_epoch(1)
    second = next(iter(loader))["input_features"]
    assert first.shape != second.shape or not torch.equal(first, second)
    collator.augmentation.set_epoch(0)
    assert torch.equal(next(iter(loader))["input_features"], first)


def test_cached_recordings_cannot_be_augmented(composed):
    with pytest.raises(ValueError, match="encoded already"):
        LlmAsrDataCollator(composed[1], augmentation=Augmentation(), hidden_states_column="audio_hidden_states")


def make_trainer(parts, dataset, folder, max_steps):
    model, processor = compose(parts, "moe_cif")
    return LlmAsrTrainer(
        model=model,
        args=LlmAsrTrainingArguments(
            str(folder),
            per_device_train_batch_size=4,
            max_steps=max_steps,
            save_steps=3,
            learning_rate=3e-3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=LlmAsrDataCollator(processor),
        train_dataset=dataset,
        eval_dataset=dataset,
        augmentation=Augmentation(SpeedPerturbation(), SpecAugment(processor)),
    )


def test_training_augments_and_resumes_equally_and_evaluation_does_not_augment(parts, dataset, tmp_path):
    whole = make_trainer(parts, dataset, tmp_path / "whole", max_steps=5)
    plain = LlmAsrDataCollator(whole.data_collator.processor)(dataset.to_list())
    assert torch.equal(
        torch.cat([batch["input_features_mask"].sum(1).cpu() for batch in whole.get_eval_dataloader()]),
        plain["input_features_mask"].sum(1),
    )
    whole.train()
    # The third step is the first step of the second epoch.
    resumed = make_trainer(parts, dataset, tmp_path / "resumed", max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    unaltered = make_trainer(parts, dataset, tmp_path / "unaltered", max_steps=5)
    unaltered.augmentation = None
    unaltered.train()
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in unaltered.model.state_dict().items())
