"""Errors of `llm-asr serve` before the server starts."""

import pytest

from llm_asr.cli import main, make_parser
from llm_asr.commands import serve as command
from llm_asr.serving.settings import ServerSettings


@pytest.fixture
def without(monkeypatch):
    """Simulates packages that are not installed."""
    find_spec = command.find_spec

    def remove(*names):
        monkeypatch.setattr(command, "find_spec", lambda name: None if name in names else find_spec(name))

    return remove


def fails(capsys, *arguments):
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llm-asr serve: error: ")
    assert error.count("\n") == 1
    return error


def test_missing_packages_are_named_with_their_install_command(without, capsys):
    without("vllm")
    error = fails(capsys, "somewhere")
    assert "vllm: `pip install" in error
    assert '"llm-asr[serve]"' in error
    assert "--engine transformers" in error
    without("prometheus_client", "python_multipart", "starlette", "uvicorn")
    error = fails(capsys, "somewhere", "--engine", "transformers")
    assert 'needs prometheus_client, python_multipart, starlette, uvicorn: `pip install "llm-asr[serve]"`.' in error


def test_models_that_cannot_be_served_are_refused(without, capsys, parts, tmp_path, monkeypatch):
    pytest.importorskip("starlette", reason='pip install "llm-asr[serve]"')
    options = ["--engine", "transformers", "--cache-dir", str(tmp_path / "cache")]
    assert "a model of type 'whisper'" in fails(capsys, parts["whisper"], *options)
    assert "absent" in fails(capsys, str(tmp_path / "absent"), *options)
    assert "--batch-size must be at least 1, got 0" in fails(capsys, parts["whisper"], *options, "--batch-size", "0")
    monkeypatch.setenv(command.API_KEY_VARIABLE, " ")
    assert "`api_key` is empty" in fails(capsys, parts["whisper"], *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_requests": 0}, "`max_requests` must be at least 1"),
        ({"max_upload_mb": 0}, "`max_upload_mb` must be positive"),
        ({"drain_s": float("nan")}, "`drain_s` must be positive"),
        ({"batch_wait_ms": -1.0}, "`batch_wait_ms` must not be negative"),
        ({"vad": "ears"}, "`vad` must be one of \\['energy', 'silero'\\], got 'ears'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**options)


def test_every_setting_except_the_key_is_an_option():
    args = make_parser().parse_args(["serve", "somewhere", "--max-upload-mb", "100", "--vad", "silero"])
    assert (args.max_upload_mb, args.vad, args.host) == (100.0, "silero", "127.0.0.1")
    settings = {name for name in ServerSettings.__dataclass_fields__ if name not in ("api_key", "cors_origins")}
    assert set(command.SETTINGS) == settings
    assert args.cors_origins == []
    assert not hasattr(args, "api_key")
    assert "geheim" not in repr(ServerSettings(api_key="geheim"))
