"""
Adds the times of words to a dataset, by an independent aligner: the cross-attention of Whisper-base (OpenAI's method, arXiv
2212.04356 with dynamic time warping, as CTranslate2 computes it).

    python examples/demo/align_with_whisper.py --dataset data/open/test.jsonl --output data/open/test-words.jsonl --languages en ru
    llm-asr evaluate --model runs/open --dataset data/open/test-words.jsonl

The second command then prints how far the times of the model are from these. They are no truth: Whisper itself is about 0.1 s off.
Whisper runs in 8 bits on one thread, and the text and the language of each recording are given. Needs the extra `corpus`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from open_corpus.recogniser import FRAMES_PER_SECOND, MAX_SECONDS, SHORT_MARGIN, Recogniser, fetch_recogniser
from speech import SAMPLE_RATE
from tqdm import tqdm

from llm_asr.atomic_writing import write_text
from llm_asr.processing.audio import load_audio


# Seconds from one frame of the encoder to the next.
FRAME_S = 0.02

LONGEST_S = MAX_SECONDS - SHORT_MARGIN


class Aligner(Recogniser):
    """
    Args:
        folder: Result of :func:`fetch_recogniser`.
    """

    def find_path(self, samples: np.ndarray, tokens: list[int], language: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the path of dynamic time warping: indices of tokens, and frames of the encoder. The end follows the last token."""
        features, _ = self.features([samples], SHORT_MARGIN)
        prompt = [self._tokenizer.token_to_id(token) for token in self.prompt(language)]
        num_frames = int(len(samples) / SAMPLE_RATE * FRAMES_PER_SECOND)
        (result,) = self._model.align(features, prompt, [tokens], [num_frames])
        token_indices, frames = np.array(result.alignments).T
        return token_indices, frames

    def align(self, samples: np.ndarray, text: str, language: str) -> list[dict]:
        """
        Args:
            samples: Float32, mono, 16 kHz, of shape `(num_samples,)` and at most 29 s.
            text: What is said, with spaces between words.
            language: ISO 639-1 code.

        Returns:
            `word`, `start` and `end` in seconds of each word.
        """
        words = text.split()
        # Each word begins with a space, so that no token is in two words.
        tokens = [self._tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in words]
        token_indices, frames = self.find_path(samples, [token for word in tokens for token in word], language)
        # Where the path comes to each token. The end of the text is the last token.
        begins = frames[np.diff(token_indices, prepend=-1) > 0] * FRAME_S
        bounds = np.cumsum([0, *map(len, tokens)])
        return [
            {"word": word, "start": round(float(begins[first]), 3), "end": round(float(begins[last]), 3)}
            for word, first, last in zip(words, bounds[:-1], bounds[1:], strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="File beside the dataset.")
    parser.add_argument("--languages", nargs="+", help="Codes; by default all.")
    parser.add_argument("--recogniser", type=Path, default=Path("data/whisper-base-int8"), help="Folder for Whisper.")
    args = parser.parse_args()
    if args.output.parent.resolve() != args.dataset.parent.resolve():
        parser.error("--output must be in the folder of --dataset, since paths of recordings are relative to it.")
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["text"] and (args.languages is None or row["language"] in args.languages)]
    aligner = Aligner(fetch_recogniser(args.recogniser))
    lines = []
    for row in tqdm(rows, desc="aligning", unit=" clips"):
        samples = load_audio(str(args.dataset.parent / row["audio"]), SAMPLE_RATE)
        if len(samples) > LONGEST_S * SAMPLE_RATE:
            print(f"{row['audio']} is longer than {LONGEST_S:g} s and left out.")
            continue
        lines.append(
            json.dumps({**row, "words": aligner.align(samples, row["text"], row["language"])}, ensure_ascii=False)
        )
    write_text(args.output, "".join(line + "\n" for line in lines))
    print(f"{args.output}: {len(lines)} recordings")


if __name__ == "__main__":
    main()
