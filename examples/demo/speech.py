"""Recorded clips: single words spoken by professional voices, from Debian's telephone sound packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


SAMPLE_RATE = 16_000
"""Hertz; the rate of every array that this module returns."""

SILENCE_BELOW_PEAK_DB = 36.0
"""A frame this far below a clip's loudest frame counts as silence."""

TRIM_FRAME = SAMPLE_RATE // 100
TRIM_MARGIN = SAMPLE_RATE // 50


@dataclass(frozen=True)
class SoundPackage:
    """One Debian package of recordings.

    Attributes:
        name: package name.
        version: package version; part of the pin, since the checksum holds for no other.
        sha256: checksum of the ``.deb`` file, in hexadecimal.
        licence: SPDX identifier of the licence of the recordings.
        sounds: folder of the recordings inside the package.
    """

    name: str
    version: str
    sha256: str
    licence: str
    sounds: str

    @property
    def archive_name(self) -> str:
        """File name of the ``.deb``; apt escapes the colon of an epoch."""
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
"""The recordings by voice; a voice is named after its language, and a further voice is one more row."""


def fetch_speech(directory: str | Path, languages: Sequence[str] = ("en", "es", "fr", "it", "ru")) -> dict[str, Path]:
    """Download and unpack the recordings of each language; what is already there is left alone.

    No root is needed. Interrupting is safe: a folder appears under its final name only when it is complete.

    Args:
        directory: where the ``.deb`` files and one folder per language go.
        languages: keys of :data:`PACKAGES`.

    Returns:
        For each language the folder of its clips (``digits/7.g722`` …), with the package's ``copyright`` file in it.

    Raises:
        ValueError: a language has no package.
        RuntimeError: a package cannot be downloaded, or its checksum is wrong.
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
    """Decode one clip and cut the silence off its ends.

    Args:
        path: an audio file in any format that FFmpeg knows (the packages hold raw G.722).

    Returns:
        The samples: float32 in [-1, 1], mono, 16 kHz, shape ``(samples,)``.
    """
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    frames += resampler.resample(None)
    if not frames:
        raise ValueError(f"{path} holds no audio")
    return trim_silence(np.concatenate([frame.to_ndarray()[0] for frame in frames]))


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """Cut leading and trailing silence, keeping a margin of 20 ms for soft onsets and releases.

    Args:
        samples: shape ``(samples,)``, 16 kHz.

    Returns:
        A slice of ``samples``.
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
    """Unpack ``package`` into the folder ``voice``, downloading it into ``directory`` where it is not there yet."""
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
    """Have apt download ``package`` into ``folder``, and return the file."""
    try:
        _run(["apt-get", "download", f"{package.name}={package.version}"], folder)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"apt-get could not download {package.name} {package.version}. If its package lists are missing or old, "
            f"run `apt-get update` as root and try again. It said:\n{error.stderr.strip()}"
        ) from error
    return folder / package.archive_name


def _verify(archive: Path, sha256: str) -> None:
    """Raise unless ``archive`` has the checksum ``sha256``."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{archive} has sha256 {found}, expected {sha256}; delete it and try again")


def _run(command: list[str], folder: Path) -> None:
    """Run ``command`` in ``folder``, keeping its output for the error message."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed; the recordings come as Debian packages") from error
