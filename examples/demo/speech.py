"""Downloads recordings of single words by professional voices from Debian's telephone sound packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np


SAMPLE_RATE = 16_000
"""Sampling rate in hertz of all arrays from this module."""

SILENCE_BELOW_PEAK_DB = 36.0
"""A frame counts as silence if its level is this far below the loudest frame of the clip."""

TRIM_FRAME = SAMPLE_RATE // 100
TRIM_MARGIN = SAMPLE_RATE // 50


@dataclass(frozen=True)
class SoundPackage:
    """
    A Debian package of recordings.

    Attributes:
        name: Name of the package.
        version: Version of the package, to which the checksum belongs.
        sha256: Checksum of the `.deb` file in hexadecimal.
        licence: SPDX identifier of the licence of the recordings.
        sounds: Folder of the recordings inside the package.
    """

    name: str
    version: str
    sha256: str
    licence: str
    sounds: str

    @property
    def archive_name(self) -> str:
        """File name of the `.deb` file. apt escapes the colon of an epoch."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


PACKAGES: dict[str, SoundPackage] = {
    "en": SoundPackage(
        name="asterisk-core-sounds-en-g722",
        version="1.6.1-1",
        sha256="38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
        licence="CC-BY-SA-3.0",
        sounds="usr/share/asterisk/sounds/en_US_f_Allison",
    ),
    "es": SoundPackage(
        name="asterisk-core-sounds-es-g722",
        version="1.6.1-1",
        sha256="e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
        licence="CC-BY-SA-3.0",
        sounds="usr/share/asterisk/sounds/es_MX_f_Allison",
    ),
    "fr": SoundPackage(
        name="asterisk-core-sounds-fr-g722",
        version="1.6.1-1",
        sha256="7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
        licence="CC-BY-SA-3.0",
        sounds="usr/share/asterisk/sounds/fr_CA_f_June",
    ),
    "it": SoundPackage(
        name="asterisk-core-sounds-it-g722",
        version="1.6.1-1",
        sha256="46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
        licence="CC-BY-3.0",
        sounds="usr/share/asterisk/sounds/it_IT_m_Carlo",
    ),
    "ru": SoundPackage(
        name="asterisk-core-sounds-ru-g722",
        version="1.6.1-1",
        sha256="673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
        licence="CC-BY-3.0",
        sounds="usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU",
    ),
    "es-co": SoundPackage(
        name="asterisk-prompt-es-co",
        version="0.20070403-2.1",
        sha256="6702696e045514699e87dc8fb70f370717e5df91f821f7bec8dd0df1be008e83",
        licence="GPL-2.0-only",
        sounds="usr/share/asterisk/sounds/es",
    ),
    "fr-armelle": SoundPackage(
        name="asterisk-prompt-fr-armelle",
        version="20070613-2.2",
        sha256="162570b1a9b3512a98f06b89f60c7c17cf1b9b52297315adca9a4e5be728bea3",
        licence="LicenseRef-BSD-style",
        sounds="usr/share/asterisk/sounds/fr",
    ),
    "it-menardi": SoundPackage(
        name="asterisk-prompt-it-menardi-wav",
        version="1:1.4.22+mm20110907-3.1",
        sha256="3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
        licence="CC-BY-SA-3.0-IT",
        sounds="usr/share/asterisk/sounds/it_IT_f_Menardi",
    ),
}
"""Packages by voice. The first voice of a language has the name of the language."""


def fetch_speech(directory: str | Path, languages: Sequence[str] = ("en", "es", "fr", "it", "ru")) -> dict[str, Path]:
    """
    Download and unpack the recordings of each language. Existing folders are kept.

    The function does not need root. It may be interrupted: a folder gets its final name only when it is complete.

    Args:
        directory: Folder for the `.deb` files and for one folder per language.
        languages: Keys of `PACKAGES`.

    Returns:
        For each language the folder of its clips (`digits/7.g722` …), which also has the package's `copyright` file.

    Raises:
        `ValueError`: If a language has no package.
        `RuntimeError`: If a package cannot be downloaded, or its checksum is wrong.
    """
    unknown = sorted(set(languages) - set(PACKAGES))
    if unknown:
        raise ValueError(f"no recordings for languages {unknown}; choose from {sorted(PACKAGES)}")
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    voices = {language: directory / language for language in languages}
    for language, voice in voices.items():
        if not voice.is_dir():
            install_package(PACKAGES[language], directory, voice)
    return voices


def load_clip(path: str | Path) -> np.ndarray:
    """
    Decode a clip and remove the silence at its ends.

    Args:
        path: An audio file in any format of FFmpeg. The packages have raw G.722 files.

    Returns:
        Samples of shape `(samples,)`: float32 in [-1, 1], mono, 16 kHz.
    """
    return trim_silence(decode_audio(str(path)))


def decode_audio(file: str | BinaryIO) -> np.ndarray:
    """Decode a recording.

    Args:
        file: path or open file, in any format that FFmpeg knows.

    Returns:
        The samples: float32 in [-1, 1], mono, 16 kHz, shape ``(samples,)``.

    Raises:
        ValueError: there is no audio in it.
    """
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    with av.open(file) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    frames += resampler.resample(None)
    if not frames:
        raise ValueError(f"{file} holds no audio")
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """
    Remove leading and trailing silence, but keep a margin of 20 ms for soft onsets and releases.

    Args:
        samples: Samples of shape `(samples,)`, 16 kHz.

    Returns:
        A slice of `samples`.
    """
    whole_frames = samples[: len(samples) // TRIM_FRAME * TRIM_FRAME].reshape(-1, TRIM_FRAME)
    loudness = np.sqrt(np.mean(np.square(whole_frames), axis=1))
    voiced = np.flatnonzero(loudness > loudness.max(initial=0.0) * 10 ** (-SILENCE_BELOW_PEAK_DB / 20))
    if voiced.size == 0:
        return samples
    start = voiced[0] * TRIM_FRAME - TRIM_MARGIN
    end = (voiced[-1] + 1) * TRIM_FRAME + TRIM_MARGIN
    return samples[max(0, start) : end]


def install_package(package: SoundPackage, directory: Path, voice: Path) -> None:
    """Download `package` to `directory` unless it exists there, and unpack it to the folder `voice`."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".unpack-") as staging_name:
        staging = Path(staging_name)
        archive = directory / package.archive_name
        if not archive.is_file():
            os.replace(_download(package, staging), archive)
        _verify(archive, package.sha256)
        _run(["dpkg-deb", "-x", str(archive), str(staging / "tree")], staging)
        sounds = staging / "tree" / package.sounds
        shutil.copy(staging / "tree" / "usr/share/doc" / package.name / "copyright", sounds / "copyright")
        os.replace(sounds, voice)


def _download(package: SoundPackage, folder: Path) -> Path:
    """Download `package` to `folder` with apt, and return the file."""
    try:
        _run(["apt-get", "download", f"{package.name}={package.version}"], folder)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"apt-get could not download {package.name} {package.version}. If its package lists are missing or old, "
            f"run `apt-get update` as root and try again. It said:\n{error.stderr.strip()}"
        ) from error
    return folder / package.archive_name


def _verify(archive: Path, sha256: str) -> None:
    """Raise an error unless `archive` has the checksum `sha256`."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{archive} has sha256 {found}, expected {sha256}; delete it and try again")


def _run(command: list[str], folder: Path) -> None:
    """Run `command` in `folder`, and keep its output for the error message."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed; the recordings come as Debian packages") from error
