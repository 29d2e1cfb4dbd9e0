"""All families of speech encoders, from their published checkpoints to transcripts."""

import copy
import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from clean_environment import build_environment
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from second_device import SECOND, place, two_devices, unwrap
from tiny_models import compose
from tiny_speech_encoders import SPEECH_ENCODER_SAVERS, reason_of_absence, save_tiny_speech_encoder
from transformers import AutoConfig, AutoProcessor, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import is_torchaudio_available

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration, LlmAsrPipeline, LlmAsrProcessor
from llm_asr.modeling.speech_encoders import SPEECH_ENCODERS, feature_time_dim, find_speech_encoder
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.export import export_for_serving
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.publishing.remote_code import write_remote_code
from llm_asr.training.augmentation import SpecAugment
from llm_asr.training.compiled_encoder import compile_audio_tower
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.feature_cache import _num_bytes as num_bytes
from llm_asr.training.feature_cache import cache_audio_hidden_states


GREEDY = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
# With the default rate, untrained CIF weights would not fire for some of the random encoders.
FIRING = {"expected_tokens_per_second": 25.0}
KERNEL_NOISE = {"rtol": 2e-4, "atol": 2e-4}


DOCUMENTATION = Path(__file__).parents[1] / "docs/speech-encoders.md"
FAMILIES = [name for name in SPEECH_ENCODER_SAVERS if not reason_of_absence(name)]
every_family = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(bool(reason_of_absence(name)), reason=reason_of_absence(name)))
        for name in SPEECH_ENCODER_SAVERS
    ],
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of tiny checkpoints, by name."""

    @functools.cache
    def save(name):
        folder = str(tmp_path_factory.mktemp(name))
        save_tiny_speech_encoder(name, folder)
        return folder

    return save


@pytest.fixture(scope="module")
def composed(parts, encoders):
    """Composes a model of each family once, for tests that do not change it."""
    return functools.cache(lambda name: compose({**parts, name: encoders(name)}, "moe_cif", audio=name, **FIRING))


@pytest.fixture(scope="module")
def compose_anew(parts, encoders):
    return lambda name, **options: compose({**parts, name: encoders(name)}, "moe_cif", audio=name, **FIRING, **options)


def published_encoder(folder, tower):
    """The module with the tower's tensors in a published model that Transformers has loaded."""
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    for module in model.modules():
        if set(module.state_dict()) == set(tower.state_dict()):
            return module
    raise AssertionError(f"{architecture} has no such module")


@every_family
def test_a_checkpoint_of_the_whole_model_gives_its_encoder(encoders, composed, name):
    """The encoder has the same weights and, for a recording of a whole window, the same output as in Transformers."""
    model, processor = composed(name)
    tower = model.model.audio_tower
    published = published_encoder(encoders(name), tower)
    for key, value in published.state_dict().items():
        assert torch.equal(tower.state_dict()[key], value), key
    generator = np.random.default_rng(0)
    inputs = processor(audio=(0.1 * generator.standard_normal(48000)).astype("float32"))
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    takes_mask = name in ("audioflamingo3", "musicflamingo", "qwen3-asr")
    with torch.no_grad():
        expected = published(features, **({"input_features_mask": mask} if takes_mask else {})).last_hidden_state
        hidden_states, real = model.model.get_audio_hidden_states(features, mask)
    assert real.all()
    torch.testing.assert_close(hidden_states.flatten(0, 1), expected.reshape(-1, expected.shape[-1]), **KERNEL_NOISE)
    # The frame rate is that of the processor.
    assert abs(hidden_states.shape[1] - 48000 / processor.samples_per_frame) <= 2


@every_family
def test_a_recording_is_encoded_equally_alone_and_in_every_batch(composed, recordings, name):
    """Values in the padding do not matter."""
    model, processor = composed(name)
    batch = processor(audio=recordings)
    features, mask = batch["input_features"], batch["input_features_mask"]
    layout = processor.feature_layout
    visible = mask.bool() if layout == "waveform" else mask.bool()[:, None if layout == "mel_first" else slice(None)]
    visible = visible[..., None] if layout == "time_first" else visible
    # Wav2Vec2-BERT normalises before it masks, so an infinite input would give infinite outputs.
    soiled = features.masked_fill(~visible, 1e3)
    with torch.no_grad():
        together, real = model.model.get_audio_hidden_states(soiled, mask)
        for row, recording in enumerate(recordings):
            alone = processor(audio=recording)
            expected, alone_real = model.model.get_audio_hidden_states(alone["input_features"])
            assert alone_real.all()
            torch.testing.assert_close(together[row][real[row]], expected[0], **KERNEL_NOISE)
    lengths = real.sum(-1).tolist()
    assert lengths == sorted(set(lengths))


@every_family
def test_tokens_are_the_same_alone_and_in_a_batch(composed, recordings, name):
    model, processor = composed(name)
    request = processor.apply_transcription_request(recordings)
    assert (
        model.get_audio_features(request["input_features"], request["input_features_mask"]).audio_lengths > 0
    ).all()
    together = model.generate(**request, **GREEDY)
    for row, recording in enumerate(recordings):
        alone = model.generate(**processor.apply_transcription_request(recording), **GREEDY)
        assert torch.equal(alone[0], together[row])


@every_family
def test_the_shortest_recording_has_a_frame_and_a_shorter_one_is_refused(composed, name):
    model, processor = composed(name)
    waveform = np.random.default_rng(0).standard_normal(processor.min_audio_samples).astype("float32")
    inputs = processor(audio=np.pad(waveform, (0, 400)))
    _, real = model.model.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
    assert real.sum() >= 1
    with pytest.raises(ValueError, match=rf"{len(waveform) - 1} samples, less than one frame of the speech encoder"):
        processor(audio=waveform[1:])


@every_family
@pytest.mark.parametrize("freeze_audio", [True, False])
def test_training_step(compose_anew, recordings, name, freeze_audio):
    model, processor = compose_anew(name, freeze_audio=freeze_audio)
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "uno dos"])
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    model.train()
    # Wav2Vec2 draws masked frames with NumPy's generator.
    set_seed(0)
    before = model(**batch).loss
    before.backward()
    gradients = [one.grad for one in model.model.audio_tower.parameters() if one.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) != freeze_audio
    optimizer.step()
    set_seed(0)
    assert model(**batch).loss < before


@every_family
def test_gradient_checkpointing_of_a_trained_encoder(compose_anew, recordings, name):
    if name == "granite":
        pytest.skip("Transformers' Granite Speech encoder has no gradient checkpointing")
    model, processor = compose_anew(name, freeze_audio=False)
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "uno dos"])
    # Disable dropout, because both ways would draw different masks.
    model.train()
    for module in model.model.audio_tower.modules():
        module.training = isinstance(module, GradientCheckpointingLayer)

    def gradients():
        model.zero_grad()
        model(**batch).loss.backward()
        return [one.grad for one in model.model.audio_tower.parameters() if one.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(), plain, **KERNEL_NOISE)


@every_family
def test_half_precision_of_a_frozen_encoder(composed, compose_anew, recordings, name):
    expected_model, processor = composed(name)
    model, _ = compose_anew(name, audio_kwargs={"dtype": torch.bfloat16})
    assert model.model.audio_tower.dtype == torch.bfloat16
    inputs = processor(audio=recordings)
    features = (inputs["input_features"], inputs["input_features_mask"])
    hidden_states, real = model.model.get_audio_hidden_states(*features)
    expected, _ = expected_model.model.get_audio_hidden_states(*features)
    assert hidden_states.dtype == torch.bfloat16
    difference = (hidden_states.float() - expected)[real].abs().mean() / expected[real].abs().mean()
    assert difference < 0.1


@every_family
def test_the_encoder_may_be_on_another_device(compose_anew, recordings, name):
    if name == "qwen3-asr":
        pytest.skip("Transformers reads lengths off its tensors, which those of the test's second device do not have")
    model, processor = compose_anew(name)
    inputs = processor(audio=recordings)
    features = (inputs["input_features"], inputs["input_features_mask"])
    expected, real = model.model.get_audio_hidden_states(*features)
    with two_devices():
        place(model.model.audio_tower, SECOND)
        hidden_states, mask = model.model.get_audio_hidden_states(*features)
        assert hidden_states.device == mask.device == SECOND
        assert torch.equal(unwrap(hidden_states), expected)
        assert torch.equal(unwrap(mask), real)


@every_family
def test_blocks_that_sharding_must_not_split_exist(composed, name):
    model, _ = composed(name)
    blocks = model.model.audio_tower._no_split_modules
    assert set(blocks) <= {type(module).__name__ for module in model.modules()}


@every_family
def test_features_too_short_for_a_frame_are_refused(composed, name):
    """Such features do not come from the processor, which refuses the recording."""
    model, processor = composed(name)
    fewest = find_speech_encoder(model.config.audio_config).count_min_features(model.config.audio_config)
    features = processor(audio=np.ones(16000, "float32"))["input_features"].repeat(
        2, *[1] * (2 - (processor.feature_layout == "waveform"))
    )
    lengths = torch.tensor([[features.shape[feature_time_dim(model.config.audio_config)]], [fewest - 1]])
    mask = torch.arange(int(lengths.max())) < lengths
    with pytest.raises(ValueError, match=r"`input_features_mask` leaves .*\[1\]"):
        model.model.get_audio_hidden_states(features, mask)
    mask = torch.arange(int(lengths.max())) < lengths + torch.tensor([[0], [1]])
    _, real = model.model.get_audio_hidden_states(features, mask)
    assert real.any(1).all()


@every_family
def test_saving_whole_and_slim(composed, recordings, tmp_path, name):
    model, processor = composed(name)
    request = processor.apply_transcription_request(recordings)
    expected = model.generate(**request, **GREEDY)
    for form in ("full", "slim"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
        loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        again = LlmAsrProcessor.from_pretrained(tmp_path / form).apply_transcription_request(recordings)
        assert all(torch.equal(again[key], request[key]) for key in request)
        assert torch.equal(loaded.generate(**again, **GREEDY), expected)
    with safe_open(tmp_path / "slim/model.safetensors", "pt") as file:
        assert not any("audio_tower" in key for key in file.keys())  # noqa: SIM118


@every_family
def test_pipeline_and_long_recordings(composed, recordings, name):
    model, processor = composed(name)
    transcriber = LlmAsrPipeline(model=model, processor=processor)
    request = processor.apply_transcription_request(recordings, identify_language=True)
    expected = processor.batch_decode(model.generate(**request, **GREEDY))
    for batch_size in (1, 3):
        outputs = transcriber(recordings, batch_size=batch_size, generate_kwargs=GREEDY)
        assert [output["text"] for output in outputs] == expected
    # The recording lasts more than five seconds and is split into segments of at most two seconds.
    long = np.concatenate([*recordings, np.zeros(8000, "float32"), *recordings])
    output = transcriber(long, chunk_length_s=2, batch_size=2, return_timestamps=True, generate_kwargs=GREEDY)
    assert len(output["chunks"]) > 1
    assert output["chunks"][-1]["timestamp"][1] <= len(long) / 16000


@every_family
def test_feature_cache_and_training_from_it(composed, recordings, tmp_path, name):
    """The cache has half precision, and its files are not larger than estimated."""
    model, processor = composed(name)
    for index, recording in enumerate(recordings):
        soundfile.write(tmp_path / f"{index}.wav", recording, 16000, subtype="FLOAT")
    rows = [{"audio": str(tmp_path / f"{index}.wav"), "text": "one", "row": str(index)} for index in range(3)]
    cached = cache_audio_hidden_states(Dataset.from_list(rows), model, processor, tmp_path / "cache", batch_size=2)
    from_audio, from_cache = (
        LlmAsrDataCollator(processor, hidden_states_column=column) for column in (None, "audio_hidden_states")
    )
    with torch.no_grad():
        expected = model(**from_audio(rows)).lm_loss
        found = model(**from_cache(cached.to_list())).lm_loss
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    for recording, file in zip(recordings, cached["audio_hidden_states"], strict=True):
        assert os.path.getsize(file) <= num_bytes(len(recording), model, processor)


@every_family
def test_spec_augment(composed, recordings, name):
    """Waveforms have no mel bins."""
    _, processor = composed(name)
    if processor.feature_layout == "waveform":
        with pytest.raises(ValueError, match="takes waveforms; use speed perturbation"):
            SpecAugment(processor)
        return
    spec_augment = SpecAugment(processor)
    batch = processor(audio=recordings)
    mask = batch["input_features_mask"]
    draws = torch.full((3, spec_augment.num_draws), 0.9, dtype=torch.float64)
    changed = spec_augment(batch["input_features"], mask, draws) != batch["input_features"]
    frames = changed.any(1 if processor.feature_layout == "mel_first" else 2)
    assert frames.any(1).all()
    assert not frames[mask == 0].any()
    # Two masks hide up to a fifth of the frames each, and other masks hide bins in all frames.
    bins = changed[2] if processor.feature_layout == "time_first" else changed[2].T
    assert 0 < bins.float().mean() < 0.8


@every_family
def test_export_for_serving(composed, recordings, tmp_path, name):
    model, processor = composed(name)
    export_for_serving(model, processor, tmp_path / "out")
    front_end = LlmAsrFrontEnd.from_pretrained(tmp_path / "out/front_end")
    own_processor = AutoProcessor.from_pretrained(tmp_path / "out/front_end")
    prompts = front_end(**own_processor.apply_transcription_request(recordings))
    merged, _ = model.model.merge_audio_and_text(**processor.apply_transcription_request(recordings))
    for row, prompt in enumerate(prompts):
        real = merged.attention_mask[row].bool()
        torch.testing.assert_close(prompt.inputs_embeds, merged.inputs_embeds[row][real], **KERNEL_NOISE)


@pytest.mark.skipif("granite_speech" not in CONFIG_MAPPING_NAMES, reason="Transformers has no granite_speech")
def test_granite_speech_without_its_feature_extractor():
    """The feature extractor needs torchaudio."""
    audio = {"model_type": "granite_speech_encoder", "input_dim": 160, "num_layers": 2, "hidden_dim": 32}
    audio.update(num_heads=2, output_dim=8, context_size=20, max_pos_emb=32)
    text = {
        "model_type": "qwen2",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    text.update(num_attention_heads=2, num_key_value_heads=2)
    config = LlmAsrConfig(
        audio_config=audio, text_config=text, projector_config={"hidden_size": 16}, audio_token_id=31
    )
    model = LlmAsrForConditionalGeneration(config).eval()
    features, lengths = torch.randn(3, 50, 160), torch.tensor([50, 17, 50])
    together, real = model.model.get_audio_hidden_states(features, torch.arange(50) < lengths[:, None])
    assert real.sum(-1).tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        alone, _ = model.model.get_audio_hidden_states(features[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], **KERNEL_NOISE)
    model.freeze_audio_tower()
    with pytest.raises(ValueError, match="layers of GraniteSpeechCTCEncoder cannot be compiled one by one"):
        compile_audio_tower(model)


def test_the_configuration_of_a_whole_model_is_not_an_encoder():
    config = LlmAsrConfig(audio_config={"model_type": "parakeet_ctc"})
    with pytest.raises(ValueError, match="is that of a whole model, 'parakeet_ctc'; pass its `encoder_config`"):
        LlmAsrForConditionalGeneration(config)


def test_adapters_that_read_padding_are_refused(encoders, parts, tmp_path):
    folder = shutil.copytree(encoders("wav2vec2"), tmp_path / "adapter")
    config = AutoConfig.from_pretrained(folder)
    config.add_adapter = True
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="`add_adapter=True`, whose convolutions read padding"):
        compose({**parts, "adapter": str(folder)}, "conv", audio="adapter")


def test_a_checkpoint_may_lack_the_embedding_of_masked_frames(encoders, parts, tmp_path):
    """The checkpoint `wav2vec2-base-960h` lacks it. All other missing weights are errors."""
    folder = shutil.copytree(encoders("wav2vec2-group-norm"), tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model, _ = compose({**parts, "lacking": str(folder)}, "conv", audio="lacking")
    assert not model.model.audio_tower.masked_spec_embed.any()
    del tensors["wav2vec2.feature_projection.projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensor.*feature_projection\.projection\.weight"):
        compose({**parts, "lacking": str(folder)}, "conv", audio="lacking")


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "seamless", "qwen3-asr"])
def test_serving(composed, recordings, tmp_path, name):
    """Tests one family for each layout of features."""
    if reason_of_absence(name):
        pytest.skip(reason_of_absence(name))
    httpx = pytest.importorskip("httpx")
    for module in ("prometheus_client", "python_multipart", "starlette", "uvicorn"):
        pytest.importorskip(module)
    from live_server import serve

    model, processor = composed(name)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    expected = LlmAsrPipeline(model=model, processor=processor)(recordings[2], language="en")["text"]
    soundfile.write(tmp_path / "audio.wav", recordings[2], 16000, subtype="FLOAT")
    with serve(str(tmp_path / "checkpoint"), str(tmp_path / "cache"), "--engine", "transformers") as address:
        answer = httpx.post(
            f"{address}/v1/audio/transcriptions",
            files={"file": ("audio.wav", (tmp_path / "audio.wav").read_bytes())},
            data={"model": "tiny", "language": "en"},
            timeout=60,
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == expected


ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in DOCUMENTATION.read_text().splitlines()
    if line.startswith("| ") and "`" in line.split("|")[2] and not line.startswith("| encoder")
]


def types_of(row):
    return re.findall(r"`([^`]+)`", row[1])


def test_the_documentation_lists_every_family():
    documented = {name for row in ROWS for name in types_of(row)}
    assert documented == {name for family in SPEECH_ENCODERS for name in (*family.model_types, *family.checkpoints)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_rates_and_lengths_of_the_documentation(row):
    """The default sizes of Transformers' configurations are those of published checkpoints."""
    tested = 0
    for name in types_of(row):
        family_name = name.partition("_")[0]
        if name not in CONFIG_MAPPING_NAMES or (
            family_name in SPEECH_ENCODER_SAVERS and reason_of_absence(family_name)
        ):
            continue
        config = AutoConfig.for_model(name)
        family = find_speech_encoder(config)
        by_layout = {"waveform": "Wav2Vec2", "mel_first": "Whisper", "time_first": "SeamlessM4T"}
        by_name = {"parakeet": "Parakeet", "granite": "GraniteSpeech"}
        extractor_name = by_name.get(family_name, by_layout[family.feature_layout]) + "FeatureExtractor"
        settings = LlmAsrConfig.describe_speech_encoder(config, getattr(transformers, extractor_name)())
        longest = settings["max_audio_samples"]
        assert row[2] == ("waveform" if settings["feature_layout"] == "waveform" else "mel")
        assert float(row[3]) == pytest.approx(16000 / settings["samples_per_frame"], rel=2e-3)
        assert row[4] == ("any" if longest is None else f"{longest / 16000:g} s")
        tested += 1
    if not tested:
        pytest.skip("absent from this version of Transformers, or needs torchaudio")


@every_family
def test_padding_is_handled_as_documented(composed, recordings, name):
    """Recordings of three lengths are encoded together or one after the other."""
    model, processor = composed(name)
    config = model.config.audio_config
    (row, *others) = [row for row in ROWS if SPEECH_ENCODER_SAVERS[name][0] in types_of(row)]
    if others:
        (row,) = [one for one in (row, *others) if f'feat_extract_norm="{config.feat_extract_norm}"' in one[0]]
    padding = row[5]
    if padding == "as Wav2Vec2":
        padding = {"layer": "masked", "group": "by length"}[config.feat_extract_norm]
    calls = []
    handle = model.model.audio_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    inputs = processor(audio=recordings)
    model.model.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
    handle.remove()
    assert len(calls) == {"masked": 1, "by length": 3}[padding]
    outputs = model.get_audio_features(
        inputs["input_features"], inputs["input_features_mask"], output_hidden_states=True
    )
    assert (outputs.hidden_states is None) == (padding == "by length")
    paddings = find_speech_encoder(config).paddings
    if "max_length" in paddings:
        model.config.encoder_padding = "max_length"
        _, real = model.model.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
        model.config.encoder_padding = "longest"
        assert real.any(1).all()
    else:
        with pytest.raises(ValueError, match="is for encoders whose windows have a fixed length"):
            # A configuration sets the attention implementation of its sub-configurations, so copy them.
            LlmAsrConfig(audio_config=copy.deepcopy(config), encoder_padding="max_length")


@pytest.mark.slow
def test_published_checkpoints_work_without_the_package(composed, recordings, tmp_path):
    expected = {}
    for name in FAMILIES:
        model, processor = composed(name)
        for part in (model, processor):
            part.save_pretrained(tmp_path / name)
        write_remote_code(tmp_path / name)
        request = processor.apply_transcription_request(recordings)
        with torch.no_grad():
            expected[name] = model(**request).logits[:, -1]
    np.savez(tmp_path / "recordings.npz", *recordings)
    needed = ["transformers", "torch", "peft", *(["torchaudio"] if is_torchaudio_available() else [])]
    interpreter = build_environment(tmp_path, needed)
    script = Path(__file__).parent / "publishing/generate_without_package.py"
    run = subprocess.run(
        [
            interpreter,
            "-I",
            script,
            tmp_path / "recordings.npz",
            tmp_path / "logits.npz",
            *map(tmp_path.joinpath, FAMILIES),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    # Compare logits. Tokens could differ if two are almost equally likely, because the number of threads differs.
    found = {name: torch.from_numpy(logits) for name, logits in np.load(tmp_path / "logits.npz").items()}
    torch.testing.assert_close(found, expected, **KERNEL_NOISE)
