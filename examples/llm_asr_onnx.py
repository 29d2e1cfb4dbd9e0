"""
Transcribes recordings with the ONNX graphs of a checkpoint, without PyTorch and without Transformers.

    pip install numpy onnxruntime soundfile tokenizers
    llm-asr export my-model my-model-onnx --format onnx     # on any machine with llm-asr[onnx]
    python examples/llm_asr_onnx.py my-model-onnx one.wav two.flac
    python examples/llm_asr_onnx.py my-model-onnx one.wav --language es

The tokens are those of `generate()` with float32 weights. A recording may be as long as the window of the speech encoder, 30 s for
Whisper; split longer ones at silences. Copy this file wherever you need it: it imports nothing of the package.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
from tokenizers import Tokenizer


class OnnxTranscriber:
    """
    Transcribes one recording at a time by greedy decoding.

    Args:
        folder (`str` or `Path`): What `llm-asr export --format onnx` wrote.
        threads (`int`, *optional*, defaults to 0): Threads of an operation; 0 lets onnxruntime choose.
        providers (`list[str]`, *optional*): Execution providers of onnxruntime. The default is its CPU.
    """

    def __init__(self, folder: str | Path, threads: int = 0, providers: list[str] | None = None):
        folder = Path(folder)
        file = folder / "onnx_config.json"
        if not file.is_file():
            raise ValueError(
                f"`folder` {str(folder)!r} has no onnx_config.json; write it with `llm-asr export --format onnx`."
            )
        self.config = json.loads(file.read_text(encoding="utf-8"))
        self.mel_filters = np.load(folder / "mel_filters.npy")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.encoder, self.projector, self.embedding, self.decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers or ["CPUExecutionProvider"])
            for name in ("encoder", "projector", "embed_tokens", "decoder")
        )
        self.past_inputs = [one for one in self.decoder.get_inputs() if one.name.startswith("past_key_values.")]

    def transcribe(self, waveform: np.ndarray, language: str = "") -> str:
        """
        Transcribe a recording.

        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): float32 at `config["sampling_rate"]`, full scale at ±1.
            language (`str`, *optional*): Code of the spoken language, such as `"es"`. With `"identify"`, the transcript begins with
                the name of the language, if the checkpoint was trained to name it. By default the prompt says nothing of it.
        """
        return self.tokenizer.decode(self.generate(waveform, language), skip_special_tokens=True).strip()

    def generate(self, waveform: np.ndarray, language: str = "") -> list[int]:
        """The tokens of the transcript, the end token among them unless it is cut at its longest length."""
        if language not in self.config["prompts"]:
            known = sorted(filter(None, self.config["prompts"]))
            raise ValueError(f"`language` {language!r} is unknown; pass one of {known}, or nothing.")
        audio_embeds, num_frames = self.embed_audio(waveform)
        prompt = self.config["prompts"][language]
        before, after = self._embed_tokens(prompt["before"]), self._embed_tokens(prompt["after"])
        embeds = np.concatenate([before, audio_embeds, after])
        length, tokens = len(embeds), []
        past = {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in self.past_inputs}
        for _ in range(self.max_new_tokens(num_frames)):
            feed = {
                "inputs_embeds": embeds[None],
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(length - len(embeds), length, dtype=np.int64)[None],
            }
            logits, *present = self.decoder.run(None, {**feed, **past})
            tokens.append(int(logits[0].argmax()))
            if tokens[-1] in self.config["eos_token_ids"]:
                break
            past = dict(zip(past, present, strict=True))
            embeds, length = self._embed_tokens(tokens[-1:]), length + 1
        return tokens

    def embed_audio(self, waveform: np.ndarray) -> tuple[np.ndarray, int]:
        """The embeddings of a recording, `(num_embeddings, text_hidden_size)`, and the number of frames of the speech encoder."""
        features = self.extract_features(waveform)
        (frames,) = self.encoder.run(None, {"input_features": features[None]})
        (embeds,) = self.projector.run(None, {"audio_hidden_states": frames})
        return embeds, frames.shape[1]

    def extract_features(self, waveform: np.ndarray) -> np.ndarray:
        """Whisper's log-mel features of the real frames of a recording, `(num_mel_bins, num_mel_frames)`, float32."""
        config = self.config
        shortest, longest = config["min_audio_samples"], config["max_audio_samples"]
        if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating) or not np.isfinite(waveform).all():
            raise ValueError("`waveform` must have shape (num_samples,) and finite floating point numbers.")
        if not shortest <= len(waveform) <= longest:
            rate = config["sampling_rate"]
            raise ValueError(
                f"`waveform` lasts {len(waveform) / rate:.2f} s and must last from {shortest / rate:.2f} to {longest / rate:.2f} s; "
                "split it at silences or remove it."
            )
        n_fft, hop = config["n_fft"], config["hop_length"]
        padded = np.zeros(config["window_samples"], np.float32)
        padded[: len(waveform)] = waveform
        padded = np.pad(padded, n_fft // 2, mode="reflect")
        # The last frame of the window is left out, as in Whisper.
        frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop][:-1]
        hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
        power = np.abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
        log_mel = np.log10(np.maximum(power.astype(np.float32) @ self.mel_filters, 1e-10)).T
        log_mel = (np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0
        return log_mel[:, : -(-len(waveform) // hop)].astype(np.float32)

    def max_new_tokens(self, num_frames: int) -> int:
        """The longest transcript of that many frames of the speech encoder, in tokens."""
        at_most, per_second = self.config["max_new_tokens"], self.config["max_new_tokens_per_second"]
        if per_second is None:
            return at_most
        # `generate` computes in float32.
        tokens = np.ceil(np.float32(num_frames) * np.float32(per_second / self.config["frame_rate"]))
        limit = int(tokens) + self.config["spare_tokens"]
        return limit if at_most is None else min(limit, at_most)

    def _embed_tokens(self, ids: list[int]) -> np.ndarray:
        (embeds,) = self.embedding.run(None, {"input_ids": np.array([ids], np.int64).reshape(1, -1)})
        return embeds[0]


def read_audio(file: str | Path, sampling_rate: int) -> np.ndarray:
    """Read an audio file as the mean of its channels, at `sampling_rate`, float32."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    waveform = samples.mean(axis=1)
    if rate == sampling_rate or not len(waveform):
        return waveform
    # Cutting or filling the spectrum changes the rate. For the best quality, convert files before.
    length = round(len(waveform) * sampling_rate / rate)
    return (np.fft.irfft(np.fft.rfft(waveform), length) * (length / len(waveform))).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="What `llm-asr export --format onnx` wrote.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="Audio files.")
    parser.add_argument("--language", default="", metavar="CODE", help="Spoken language, such as es, or `identify`.")
    parser.add_argument("--threads", type=int, default=0, help="Threads; by default onnxruntime chooses.")
    parser.add_argument("--tokens", action="store_true", help="Print the numbers of tokens in place of text.")
    args = parser.parse_args()
    try:
        transcriber = OnnxTranscriber(args.folder, args.threads)
        for file in args.files:
            waveform = read_audio(file, transcriber.config["sampling_rate"])
            if args.tokens:
                print(f"{file}: {json.dumps(transcriber.generate(waveform, args.language))}")
            else:
                print(f"{file}: {transcriber.transcribe(waveform, args.language)}")
    except (ValueError, soundfile.LibsndfileError) as error:
        print(f"llm_asr_onnx: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
