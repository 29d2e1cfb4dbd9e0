"""
Public English and multilingual datasets of the Open ASR Leaderboard with short recordings.

Names, configurations and splits follow https://github.com/huggingface/open_asr_leaderboard as of August 2026
(`transformers/submit_jobs_whisper.sh` and `submit_jobs_whisper_ml.sh`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


ENGLISH_PATH = "hf-audio/open-asr-leaderboard"
MULTILINGUAL_PATH = "hf-audio/open-asr-leaderboard-multilingual-datasets"


@dataclass(frozen=True)
class LeaderboardDataset:
    """
    One column of the leaderboard.

    Attributes:
        name (`str`): Name in the command line.
        suite (`str`): `"english"` or `"multilingual"`.
        path (`str`): Hub id.
        config (`str`): Configuration on the Hub, and the dataset's name in result files.
        split (`str`): Split on the Hub.
        language (`str`): Language code for the prompt and for the normaliser.
        audio_column, text_column (`str`): Names of the columns with recordings and transcripts.
        parent (`str`, *optional*):
            Hub id of the dataset with whole recordings, if this dataset has chunks of them. The `parent_id` of a chunk
            refers to the parent's `id`, and the parent's text is the reference for all chunks of a recording together.
            Chunks have a `chunk_index` and a `file_name` in the folder `audio`. Such a dataset has no configuration.
    """

    name: str
    suite: str
    path: str
    config: str
    split: str = "test"
    language: str = "en"
    audio_column: str = "audio"
    text_column: str = "text"
    parent: str | None = None

    def manifest_name(self, model_id: str) -> str:
        """Name of a model's result file, in the form that the leaderboard parses."""
        parts = [part.replace("/", "-") for part in (model_id, self.path, self.config)]
        return f"MODEL_{parts[0]}_DATASET_{parts[1]}_{parts[2]}_{self.split}.jsonl"


ENGLISH = (
    LeaderboardDataset("ami_cleaned", "english", ENGLISH_PATH, "ami_cleaned"),
    LeaderboardDataset(
        "earnings22_cleaned_aa_chunked",
        "english",
        "ArtificialAnalysis/Earnings22-Cleaned-AA-chunked",
        "earnings22_cleaned_aa_chunked",
        parent="ArtificialAnalysis/Earnings22-Cleaned-AA",
    ),
    LeaderboardDataset("gigaspeech_cleaned", "english", ENGLISH_PATH, "gigaspeech_cleaned"),
    LeaderboardDataset("librispeech_clean", "english", ENGLISH_PATH, "librispeech", split="test.clean"),
    LeaderboardDataset("librispeech_other", "english", ENGLISH_PATH, "librispeech", split="test.other"),
    LeaderboardDataset("spgispeech", "english", ENGLISH_PATH, "spgispeech"),
    LeaderboardDataset("voxpopuli_cleaned_aa", "english", ENGLISH_PATH, "voxpopuli_cleaned_aa"),
)

MULTILINGUAL = tuple(
    LeaderboardDataset(
        f"{corpus}_{language}", "multilingual", MULTILINGUAL_PATH, f"{corpus}_{language}", language=language
    )
    for corpus, languages in (
        ("fleurs", ("de", "es", "fr", "it", "pt")),
        ("mcv", ("de", "es", "fr", "it")),
        ("mls", ("es", "fr", "it", "pt")),
    )
    for language in languages
)

SUITES = {"english": ENGLISH, "multilingual": MULTILINGUAL}
DATASETS = {dataset.name: dataset for dataset in (*ENGLISH, *MULTILINGUAL)}


def select_datasets(names: Sequence[str]) -> list[LeaderboardDataset]:
    """
    Return the named datasets without duplicates.

    Args:
        names (`Sequence[str]`): Names of datasets, or `"english"` or `"multilingual"` for all datasets of a suite.

    Raises:
        `ValueError`: If a name is unknown, or `names` is empty.
    """
    if not names:
        raise ValueError("`names` is empty; name a dataset or a suite.")
    chosen: dict[str, LeaderboardDataset] = {}
    for name in names:
        if name not in SUITES and name not in DATASETS:
            raise ValueError(f"There is no dataset {name!r}; choose from {', '.join([*SUITES, *DATASETS])}.")
        for dataset in SUITES.get(name) or (DATASETS[name],):
            chosen[dataset.name] = dataset
    return list(chosen.values())


__all__ = ["DATASETS", "ENGLISH", "MULTILINGUAL", "SUITES", "LeaderboardDataset", "select_datasets"]
