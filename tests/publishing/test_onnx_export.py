"""ONNX graphs give the embeddings and the greedy tokens of the model, without PyTorch."""

import ast
import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import llm_asr_onnx
import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from llm_asr_onnx import OnnxTranscriber, read_audio
from tiny_language_models import LANGUAGE_MODELS, save_tiny_language_model
from tiny_models import compose
from transformers import DynamicCache

from llm_asr.cli import main
from llm_asr.modeling.decoding_guards import length_limits
from llm_asr.modeling.transformers_versions import CACHE_NAME
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.export import extract_language_model
from llm_asr.publishing.onnx_export import check_parts, export_onnx, list_graphs, write_graph


EXAMPLE = Path(llm_asr_onnx.__file__)
RATE = 16000


@pytest.fixture(scope="module")
def exported(parts, tmp_path_factory):
    """A model with CIF and experts, its processor, and the folder of its graphs."""
    root = tmp_path_factory.mktemp("onnx")
    model, processor = compose(parts, "moe_cif", text="qwen2-tied", draft_head=True)
    # Recordings get different, short limits.
    model.generation_config.max_new_tokens_per_second = 4.0
    save_checkpoint(model, processor, root / "model")
    assert main(["export", str(root / "model"), str(root / "out"), "--format", "onnx"]) == 0
    return model, processor, root / "out"


@pytest.fixture
def recordings(recordings):
    """Noise of several lengths, a pure tone, silence, one encoder frame, an odd length, and a full window of 3 seconds."""
    generator = np.random.default_rng(1)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    others = [tone, np.zeros(RATE), *(0.3 * generator.standard_normal(size) for size in (320, 1601, 3 * RATE))]
    return [*recordings, *(other.astype("float32") for other in others)]


def test_embeddings_and_tokens_are_those_of_the_model(exported, recordings):
    model, processor, folder = exported
    transcriber = OnnxTranscriber(folder)
    found = []
    for waveform in recordings:
        inputs = processor.apply_transcription_request(waveform)
        features = inputs["input_features"][0, :, : int(inputs["input_features_mask"].sum())]
        np.testing.assert_allclose(transcriber.extract_features(waveform), features, atol=1e-4)
        audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        embeds, num_frames = transcriber.embed_audio(waveform)
        assert num_frames == int(audio.num_frames)
        np.testing.assert_allclose(embeds, audio.pooler_output.detach(), atol=1e-4)
        for request in ({}, {"language": "es"}, {"identify_language": True}):
            inputs = processor.apply_transcription_request(waveform, **request)
            tokens = transcriber.generate(
                waveform, "identify" if "identify_language" in request else request.get("language", "")
            )
            assert tokens == model.generate(**inputs)[0].tolist()
            found.append(tuple(tokens))
        assert transcriber.transcribe(waveform) == processor.decode(
            model.generate(**processor.apply_transcription_request(waveform))[0]
        )
    # The transcripts must differ, or the test would pass with any model.
    assert len(set(found)) > 10
    assert len({len(row) for row in found}) > 2


def test_the_example_imports_neither_pytorch_nor_this_package(exported, recordings, tmp_path):
    model, processor, folder = exported
    imports = [
        node
        for node in ast.walk(ast.parse(EXAMPLE.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {
        name.partition(".")[0]
        for node in imports
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "soundfile", "tokenizers"}
    for index, waveform in enumerate(recordings[:3]):
        soundfile.write(tmp_path / f"{index}.wav", waveform, RATE, subtype="FLOAT")
    files = [str(tmp_path / f"{index}.wav") for index in range(3)]
    # `None` makes an import fail, also one in a dependency.
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'transformers', 'llm_asr'))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [str(EXAMPLE), str(folder), *files, "--tokens", "--threads", "1"]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = {arguments!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (run.returncode, run.stderr) == (0, "")
    expected = [
        model.generate(**processor.apply_transcription_request(waveform))[0].tolist() for waveform in recordings[:3]
    ]
    assert run.stdout == "".join(f"{file}: {json.dumps(row)}\n" for file, row in zip(files, expected, strict=True))


def test_the_example_names_what_is_wrong(exported, tmp_path, monkeypatch, capsys):
    folder = exported[2]
    soundfile.write(tmp_path / "long.wav", np.zeros(4 * RATE), RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    (tmp_path / "text.wav").write_text("not audio")
    for arguments, message in [
        ([folder, "long.wav"], "lasts 4.00 s and must last from 0.02 to 3.00 s; split it"),
        ([folder, "empty.wav"], "lasts 0.00 s"),
        ([folder, "text.wav"], "text.wav"),
        ([folder, "absent.wav"], "absent.wav"),
        ([tmp_path, "long.wav"], "has no onnx_config.json"),
        ([folder, "long.wav", "--language", "xx"], "`language` 'xx' is unknown"),
    ]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["llm_asr_onnx.py", *map(str, arguments)])
        assert llm_asr_onnx.main() == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="finite floating point"):
        OnnxTranscriber(folder).transcribe(np.zeros(RATE, np.int16))


def test_audio_of_other_rates_and_channels_is_read(tmp_path):
    time = np.arange(RATE // 2) / RATE
    wanted = (0.5 * np.sin(2 * np.pi * 500 * time)).astype("float32")
    for rate in (8000, 44100, RATE):
        tone = np.sin(2 * np.pi * 500 * np.arange(rate // 2) / rate)
        soundfile.write(tmp_path / "tone.wav", np.stack([tone, np.zeros_like(tone)], axis=1), rate, subtype="FLOAT")
        found = read_audio(tmp_path / "tone.wav", RATE)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def run_graph(folder, name, inputs):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return session.run(None, {key: np.asarray(value) for key, value in inputs.items()})


def check_same_embeddings(model, folder, frames) -> int:
    """Check that the graph of the projector gives the embeddings of the model, and return their number."""
    with torch.no_grad():
        expected = model.get_audio_features(audio_hidden_states=frames).pooler_output
    (embeds,) = run_graph(folder, "projector", {"audio_hidden_states": frames})
    assert embeds.shape == expected.shape
    np.testing.assert_allclose(embeds, expected, atol=1e-4)
    return len(embeds)


@pytest.mark.parametrize(
    ("projector_type", "options"),
    [
        ("conv", {"mlp_gated": True, "mlp_norms": ["input", "hidden", "output"]}),
        (
            "cif",
            {"cif_threshold": 0.7, "cif_tail_threshold": 0.3, "cif_smooth_factor": 1.5, "cif_noise_threshold": 0.1},
        ),
        ("stack", {"stack_size": 3}),
        ("moe_stack", {"stack_size": 5, "stack_remainder": "drop", "expert_bias": True}),
        ("moe", {"routing_level": "utterance", "merge": "parameters", "expert_bias": True, "router_type": "mlp"}),
        ("moe_cif", {"routing_level": "utterance", "num_shared_experts": 1, "num_experts_per_tok": 4}),
    ],
)
def test_projectors(parts, tmp_path, projector_type, options):
    model, _ = compose(parts, projector_type, **options)
    model.eval()
    write_graph(list_graphs(model)["projector"], tmp_path / "projector.onnx")
    counts = set()
    for num_frames in (1, 2, 5, 15, 64, 150):
        counts.add(check_same_embeddings(model, tmp_path, torch.randn(1, num_frames, 32)))
    assert len(counts) > 3


def test_cif_may_fire_nothing_or_several_times_in_a_frame(parts, tmp_path):
    model, _ = compose(parts, "moe_cif", cif_threshold=0.3, routing_level="utterance")
    frames = torch.randn(1, 40, 32)
    counts = []
    for bias in (-20.0, 20.0):
        torch.nn.init.constant_(model.model.projector.cif.alpha_proj.bias, bias)
        write_graph(list_graphs(model)["projector"], tmp_path / "projector.onnx")
        counts.append(check_same_embeddings(model, tmp_path, frames))
    assert counts[0] == 0
    assert counts[1] > 40


def test_an_encoder_with_silence_up_to_its_window(parts, tmp_path):
    model, _ = compose(parts, "conv", encoder_padding="max_length")
    write_graph(list_graphs(model)["encoder"], tmp_path / "encoder.onnx")
    for num_mel_frames in (1, 40, 131, 300):
        features = torch.randn(1, 16, num_mel_frames)
        (frames,) = run_graph(tmp_path, "encoder", {"input_features": features})
        expected, _ = model.model.get_audio_hidden_states(features)
        np.testing.assert_allclose(frames, expected.detach(), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_language_models(parts, tmp_path, family):
    """A padded batch is read at once and then token by token, beyond the window of attention."""
    assert "sliding_window" in LANGUAGE_MODELS["gemma3_text"]
    save_tiny_language_model(family, tmp_path / "text")
    model, _ = compose({**parts, "text": str(tmp_path / "text")}, "conv", text="text")
    check_parts(model)
    graphs = list_graphs(model.eval())
    write_graph(graphs["decoder"], tmp_path / "decoder.onnx")
    write_graph(graphs["embed_tokens"], tmp_path / "embed_tokens.onnx")
    text_model = extract_language_model(model)
    ids = torch.randint(3, 200, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = text_model(ids, attention_mask=mask, position_ids=positions, **{CACHE_NAME: DynamicCache()}).logits
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    (embeds,) = run_graph(tmp_path, "embed_tokens", {"input_ids": ids})
    past = {one.name: np.zeros((2, one.shape[1], 0, one.shape[3]), np.float32) for one in session.get_inputs()[3:]}
    steps = [slice(0, 14), *(slice(start, start + 1) for start in range(14, 20))]
    for step in steps:
        feed = {
            "inputs_embeds": embeds[:, step],
            "attention_mask": mask[:, : step.stop].numpy(),
            "position_ids": positions[:, step].numpy(),
        }
        logits, *present = session.run(None, {**feed, **past})
        np.testing.assert_allclose(logits, expected[:, step.stop - 1], atol=1e-4)
        past = dict(zip(past, present, strict=True))


def test_a_language_model_that_pytorch_cannot_export_is_refused(parts, tmp_path):
    """Dynamic scaling of rotary positions depends on the length at run time."""
    positions = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    save_tiny_language_model("llama", tmp_path / "text", rope_parameters=positions)
    model, _ = compose({**parts, "text": str(tmp_path / "text")}, "conv", text="text")
    with pytest.raises(ValueError, match="cannot export the part 'decoder' as an ONNX graph: Could not"):
        write_graph(list_graphs(model)["decoder"], tmp_path / "decoder.onnx")


def test_transcripts_have_the_limits_of_the_model(exported):
    transcriber = OnnxTranscriber(exported[2])
    frames = torch.arange(1, 1501)
    for rate in (0.1, 4.0, 7.3, 20.0, 33.3):
        for at_most in (None, 40):
            transcriber.config |= {"max_new_tokens_per_second": rate, "max_new_tokens": at_most}
            found = [transcriber.max_new_tokens(count) for count in frames.tolist()]
            assert found == length_limits(frames, transcriber.config["frame_rate"], rate, at_most).tolist()
    transcriber.config |= {"max_new_tokens_per_second": None, "max_new_tokens": 40}
    assert transcriber.max_new_tokens(1500) == 40


def test_int8_is_in_the_matrix_products_of_encoder_and_language_model(parts, recordings, tmp_path, capsys, caplog):
    model, processor = compose(parts, "conv")
    model.generation_config.max_new_tokens = 5
    model.train()
    capsys.readouterr()
    export_onnx(model, processor, tmp_path / "out", dtype="int8")
    assert model.training
    assert capsys.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for name, is_int8 in {"encoder": True, "projector": False, "embed_tokens": False, "decoder": True}.items():
        graph = onnx.load(tmp_path / "out" / f"{name}.onnx").graph
        assert any(node.op_type == "MatMulInteger" for node in graph.node) == is_int8
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {name for name in names if ".onnx" not in name} == {
        "tokenizer.json",
        "mel_filters.npy",
        "onnx_config.json",
        "SHA256SUMS",
    }
    transcriber = OnnxTranscriber(tmp_path / "out")
    model.eval()
    for waveform in recordings:
        inputs = processor.apply_transcription_request(waveform)
        expected = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        embeds, _ = transcriber.embed_audio(waveform)
        assert np.abs(embeds - expected.detach().numpy()).mean() < 0.1 * expected.abs().mean()
        assert 1 <= len(transcriber.generate(waveform)) <= 5


@pytest.mark.parametrize(
    ("audio", "projector_type", "options", "message"),
    [
        ("parakeet", "conv", {}, "speech encoder 'parakeet_encoder' cannot be exported"),
        ("whisper", "qformer", {}, "`projector_type` 'qformer' cannot be exported"),
        ("whisper", "ctc", {}, "`projector_type` 'ctc' cannot be exported"),
        (
            "whisper",
            "conv",
            {"encoder_attention": "chunked", "encoder_chunk_s": 0.4},
            "`encoder_attention` 'chunked' cannot",
        ),
        (
            "whisper",
            "conv",
            {"text_kwargs": {"dtype": torch.bfloat16}},
            r"\['bfloat16', 'float32'\], and ONNX graphs need float32",
        ),
    ],
)
def test_models_without_graphs_are_refused(parts, tmp_path, audio, projector_type, options, message):
    model, processor = compose(parts, projector_type, audio=audio, **options)
    with pytest.raises(ValueError, match=message):
        export_onnx(model, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 1.3, "suppress_tokens": [5]}, r"sets \['repetition_penalty', 'suppress_tokens'\]"),
        ({"do_sample": True}, r"sets \['do_sample'\]"),
        ({"num_beams": 3}, r"sets \['num_beams'\]"),
        ({"eos_token_id": None}, "`generation_config.eos_token_id` is not set"),
        ({"max_new_tokens_per_second": None}, "neither `max_new_tokens_per_second` nor `max_new_tokens`"),
    ],
)
def test_settings_that_the_example_does_not_follow_are_refused(parts, tmp_path, settings, message):
    model, processor = compose(parts, "conv")
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=message):
        export_onnx(model, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_reads_what_follows_a_recording_is_refused(parts, tmp_path):
    model, processor = compose(parts, "conv")
    model.config.encoder_padding, processor.audio_padding = "features", "max_length"
    with pytest.raises(ValueError, match="`encoder_padding` 'features' cannot"):
        export_onnx(model, processor, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_processors_that_the_example_does_not_follow_are_refused(parts, tmp_path):
    for name, value in (("audio_padding", "silence"), ("audio_padding", "mirror"), ("log_mel_maximum", "running")):
        model, processor = compose(parts, "conv")
        setattr(processor, name, value)
        with pytest.raises(ValueError, match=value):
            export_onnx(model, processor, tmp_path / "out")
    with pytest.raises(ValueError, match=r"`model` is on \['meta'\], and ONNX graphs are written on the CPU"):
        check_parts(compose(parts, "conv")[0].to("meta"))
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        export_onnx(*compose(parts, "conv"), tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_the_command_line_refuses_what_cannot_be(parts, tmp_path, capsys, monkeypatch):
    model, processor = compose(parts, "qformer")
    save_checkpoint(model, processor, tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out")]
    for arguments, message in [
        ([*command, "--format", "onnx"], "`projector_type` 'qformer' cannot be exported"),
        (
            [*command, "--format", "onnx", "--dtype", "float16"],
            "--format onnx has no --dtype float16; pass one of auto, float32, int8",
        ),
        ([*command, "--dtype", "int8"], "--format serving has no --dtype int8"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "llm_asr.publishing.onnx_export.find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    assert main([*command, "--format", "onnx"]) == 2
    assert 'packages that are not installed (onnxruntime): `pip install "llm-asr[onnx]"`' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
