"""Utterances from clips: numbers, dates, times and telephone numbers, joined as a telephone system speaks them.

Every utterance starts as text by its language's own rules. The language's lexicon then names the recordings which
say exactly that text; text with a word that no recording says is never used. What ``words`` in a row lists are the
spoken units: usually one written word, sometimes several that share one recording ("dix sept").

Conventions of the transcripts: lower case, no punctuation, hyphens written as spaces.

* English numbers leave out "and", as American English does ("one hundred five").
* French "vingt", "cent" and "million" take their plural s; the recordings sound the same either way.
* Italian writes a number below one hundred, a multiple of one hundred, and a thousand, as in "duemila" and
  "trentamila", each as one word, and separates these groups ("duemila trecento quarantacinque"); numbers whose
  groups elide ("centottanta") are left out. A word may join two or three recordings ("venti" + "tre": "ventitré").
* Russian has no recordings of feminine numerals, of hundreds above one, or of "тысяч", which leaves the numbers
  without them; its dates read "третий вторник марта", since the recorded ordinals are masculine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from num2words import num2words
from speech import SAMPLE_RATE, fetch_speech, load_clip
from tqdm import tqdm


Lexicon = Mapping[str, tuple[str, ...]]
"""From written text, of one or more words, to the clips that say it, as paths without the ending."""

MAX_UNIT_WORDS = 3
"""Words of the lexicons' longest entry ("quatre vingt dix")."""

MIN_SECONDS = 0.8
MAX_SECONDS = 8.0

JOIN_SAMPLES = SAMPLE_RATE // 50
"""Overlap of two recordings inside one word: the silent margins that trimming leaves."""

FADE_SAMPLES = SAMPLE_RATE // 200
GAP_SECONDS = (0.02, 0.25)
EDGE_SECONDS = (0.05, 0.4)

SILENCE_DB = (-75.0, -25.0)
"""Level of what is heard where nobody speaks."""

DRAWS_PER_KIND = 50
DRAWS_PER_UTTERANCE = 20_000
"""Texts tried for one utterance, of one kind at a time and in all, before giving up."""


# --- Languages ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grammar:
    """How one language writes what a telephone system says.

    Attributes:
        lexicon: the text that has recordings.
        number: writes a cardinal number.
        date: writes a date from the weekday (0 is Sunday), the day of the month and the month (0 is January).
        time: writes an appointment's time from hour (0–23) and minute.
        days: words that may precede a time: the weekdays and "tomorrow".
    """

    lexicon: Lexicon
    number: Callable[[int], str]
    date: Callable[[int, int, int], str]
    time: Callable[[int, int], str]
    days: tuple[str, ...]


def plain(text: str) -> str:
    """Reduce ``text`` to the transcripts' alphabet: lower case, no commas, hyphens as spaces."""
    return " ".join(text.lower().replace(",", " ").replace("-", " ").split())


def _clips(folder_prefix: str, words: str) -> dict[str, tuple[str, ...]]:
    """Number ``words`` from 0, as the packages do with weekdays (from Sunday) and months."""
    return {word: (f"digits/{folder_prefix}-{index}",) for index, word in enumerate(words.split())}


def _numerals(language: str, numbers: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """The lexicon of those ``numbers`` that have a recording of their own."""
    return {plain(num2words(number, lang=language)): (f"digits/{number}",) for number in numbers}


BASIC_NUMBERS = (*range(21), *range(30, 100, 10))

EN_DAYS = "sunday monday tuesday wednesday thursday friday saturday"
EN_MONTHS = "january february march april may june july august september october november december"
EN_LEXICON: Lexicon = {
    **_numerals("en", BASIC_NUMBERS),
    **{num2words(day, to="ordinal"): (f"digits/h-{day}",) for day in (*range(1, 21), 30)},
    **_clips("day", EN_DAYS),
    **_clips("mon", EN_MONTHS),
    "hundred": ("digits/hundred",),
    "thousand": ("digits/thousand",),
    "million": ("digits/million",),
    "at": ("digits/at",),
    "oh": ("digits/oh",),
    "o'clock": ("digits/oclock",),
    "a m": ("digits/a-m",),
    "p m": ("digits/p-m",),
    "tomorrow": ("digits/tomorrow",),
}


def en_number(number: int) -> str:
    """123 → "one hundred twenty three"."""
    return plain(num2words(number)).replace(" and ", " ")


def en_date(weekday: int, day: int, month: int) -> str:
    """Write "tuesday march twenty first"."""
    return f"{EN_DAYS.split()[weekday]} {EN_MONTHS.split()[month]} {plain(num2words(day, to='ordinal'))}"


def en_time(hour: int, minute: int) -> str:
    """Write "at seven thirty p m", "at seven oh five a m", "at seven o'clock"."""
    clock_hour = en_number((hour - 1) % 12 + 1)
    if minute == 0:
        return f"at {clock_hour} o'clock"
    spoken_minute = en_number(minute) if minute > 9 else f"oh {en_number(minute)}"
    return f"at {clock_hour} {spoken_minute} {'a m' if hour < 12 else 'p m'}"


ES_DAYS = "domingo lunes martes miércoles jueves viernes sábado"
ES_MONTHS = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"
ES_LEXICON: Lexicon = {
    **_numerals("es", (*range(31), *range(40, 100, 10), *range(200, 1000, 100))),
    **_clips("day", ES_DAYS),
    **_clips("mon", ES_MONTHS),
    "un": ("digits/1M",),
    "una": ("digits/1F",),
    "y": ("digits/and",),
    "cien": ("digits/hundred",),
    "ciento": ("digits/100-and",),
    "mil": ("digits/thousand",),
    "millón": ("digits/million",),
    "millones": ("digits/millions",),
    "primero": ("digits/h-1",),
    "el": ("digits/es-el",),
    "de": ("digits/es-de",),
    "a las": ("digits/at",),
    "a la": ("digits/at_s",),
    "mañana": ("digits/tomorrow",),
}


def es_number(number: int) -> str:
    """31000 → "treinta y un mil": "uno" loses its o before the noun that it counts, which num2words overlooks."""
    text = plain(num2words(number, lang="es"))
    return re.sub(r"uno (?=mil)", "un ", text.replace("veintiuno mil", "veintiún mil"))


def es_date(weekday: int, day: int, month: int) -> str:
    """Write "el martes veintiuno de marzo"."""
    spoken_day = "primero" if day == 1 else es_number(day)
    return f"el {ES_DAYS.split()[weekday]} {spoken_day} de {ES_MONTHS.split()[month]}"


def es_time(hour: int, minute: int) -> str:
    """Write "a las siete y treinta", "a la una"."""
    clock_hour = (hour - 1) % 12 + 1
    text = "a la una" if clock_hour == 1 else f"a las {es_number(clock_hour)}"
    return f"{text} y {es_number(minute)}" if minute else text


FR_DAYS = "dimanche lundi mardi mercredi jeudi vendredi samedi"
FR_MONTHS = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
FR_LEXICON: Lexicon = {
    **_numerals("fr", BASIC_NUMBERS),
    **_clips("day", FR_DAYS),
    **_clips("mon", FR_MONTHS),
    "quatre vingt": ("digits/80",),
    "et": ("digits/et",),
    "cent": ("digits/hundred",),
    "cents": ("digits/hundred",),
    "mille": ("digits/thousand",),
    "million": ("digits/million",),
    "millions": ("digits/million",),
    "premier": ("digits/h-1",),
    "à": ("digits/at",),
    "heures": ("digits/oclock",),
    "demain": ("digits/tomorrow",),
}


def fr_number(number: int) -> str:
    """71 → "soixante et onze"."""
    return plain(num2words(number, lang="fr"))


def fr_date(weekday: int, day: int, month: int) -> str:
    """Write "mardi vingt et un mars"."""
    return f"{FR_DAYS.split()[weekday]} {'premier' if day == 1 else fr_number(day)} {FR_MONTHS.split()[month]}"


def fr_time(hour: int, minute: int) -> str:
    """Write "à sept heures trente"; one and twenty-one take the feminine "une"."""
    text = f"à {re.sub('un$', 'une', fr_number(hour))} {'heures' if hour > 1 else 'heure'}"
    return f"{text} {fr_number(minute)}" if minute else text


IT_DAYS = "domenica lunedì martedì mercoledì giovedì venerdì sabato"
IT_MONTHS = "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"
IT_OWN_CLIP = {*BASIC_NUMBERS, *range(21, 100, 10), *range(28, 100, 10)}


def _it_numerals() -> dict[str, tuple[str, ...]]:
    """Number words: all below one hundred, the hundreds, and the thousands up to twenty, by tens and by hundreds."""
    clips = {number: (f"digits/{number}",) for number in IT_OWN_CLIP}
    clips |= {n: (f"digits/{n // 10 * 10}", f"digits/{n % 10}") for n in range(21, 100) if n not in IT_OWN_CLIP}
    clips |= {100: ("digits/hundred",)}
    clips |= {100 * digit: (f"digits/{digit}", "digits/hundred") for digit in range(2, 10)}
    counts = (*range(2, 21), *range(30, 100, 10), *range(100, 1000, 100))
    clips |= {1000 * count: (*clips[count], "digits/thousands") for count in counts}
    return {num2words(number, lang="it"): parts for number, parts in clips.items()}


IT_LEXICON: Lexicon = {
    **_it_numerals(),
    **_clips("day", IT_DAYS),
    **_clips("mon", IT_MONTHS),
    "mille": ("digits/thousand",),
    "un": ("digits/un",),
    "milione": ("digits/million",),
    "milioni": ("digits/millions",),
    "e": ("digits/e",),
    "primo": ("digits/h-1",),
    "alle": ("digits/at",),
    "domani": ("digits/tomorrow",),
}


def it_number(number: int) -> str:
    """2345 → "duemila trecento quarantacinque"; 180 stays "centottanta", which no lexicon entry says."""
    text = num2words(number, lang="it")
    places = (number // 1_000_000 * 1_000_000, number % 1_000_000 // 1000 * 1000, number % 1000 // 100 * 100)
    groups = [num2words(place, lang="it") for place in (*places, number % 100) if place]
    elided = "".join(groups) != text.replace(" e ", "")
    return text if elided else " ".join(groups)


def it_date(weekday: int, day: int, month: int) -> str:
    """Write "martedì ventuno marzo"."""
    return f"{IT_DAYS.split()[weekday]} {'primo' if day == 1 else it_number(day)} {IT_MONTHS.split()[month]}"


def it_time(hour: int, minute: int) -> str:
    """Write "alle sette e trenta"; midnight and one o'clock are "a mezzanotte" and "all'una"."""
    text = {0: "a mezzanotte", 1: "all'una"}.get(hour, f"alle {it_number(hour)}")
    return f"{text} e {it_number(minute)}" if minute else text


RU_DAYS = "воскресенье понедельник вторник среда четверг пятница суббота"
RU_MONTHS = "января февраля марта апреля мая июня июля августа сентября октября ноября декабря"
RU_LEXICON: Lexicon = {
    **_numerals("ru", BASIC_NUMBERS),
    **{num2words(week, to="ordinal", lang="ru"): (f"digits/h-{week}",) for week in range(1, 6)},
    **_clips("day", RU_DAYS),
    **_clips("mon", RU_MONTHS),
    "сто": ("digits/hundred",),
    "тысяча": ("digits/thousand",),
    "тысячи": ("digits/h-thousand",),
    "миллион": ("digits/million",),
    "миллиона": ("digits/h-million",),
    "в": ("digits/at",),
    "часов": ("hours",),
    "минут": ("minutes",),
    "завтра": ("digits/tomorrow",),
}


def ru_number(number: int) -> str:
    """1005 → "тысяча пять": a single thousand is not counted in speech."""
    return re.sub(r"^одна тысяча\b", "тысяча", plain(num2words(number, lang="ru")))


def ru_date(weekday: int, day: int, month: int) -> str:
    """Write "третий вторник марта"; the ordinal takes the gender of the weekday."""
    ordinal = num2words((day - 1) // 7 + 1, to="ordinal", lang="ru", gender=_ru_gender(RU_DAYS.split()[weekday]))
    return f"{ordinal} {RU_DAYS.split()[weekday]} {RU_MONTHS.split()[month]}"


def ru_time(hour: int, minute: int) -> str:
    """Write "в семь часов тридцать минут", each noun in the form that its number asks for."""
    text = f"в {ru_number(hour)} {_ru_counted(hour, 'час', 'часа', 'часов')}"
    if minute == 0:
        return text
    spoken_minute = num2words(minute, lang="ru", gender="f")
    return f"{text} {spoken_minute} {_ru_counted(minute, 'минута', 'минуты', 'минут')}"


def _ru_gender(noun: str) -> str:
    """Gender of a nominative noun by its ending, in num2words' letters."""
    return {"а": "f", "е": "n"}.get(noun[-1], "m")


def _ru_counted(count: int, one: str, few: str, many: str) -> str:
    """The form of a noun after ``count``."""
    if count % 100 in range(11, 20) or count % 10 in (0, 5, 6, 7, 8, 9):
        return many
    return one if count % 10 == 1 else few


GRAMMARS: dict[str, Grammar] = {
    "en": Grammar(EN_LEXICON, en_number, en_date, en_time, (*EN_DAYS.split(), "tomorrow")),
    "es": Grammar(ES_LEXICON, es_number, es_date, es_time, (*ES_DAYS.split(), "mañana")),
    "fr": Grammar(FR_LEXICON, fr_number, fr_date, fr_time, (*FR_DAYS.split(), "demain")),
    "it": Grammar(IT_LEXICON, it_number, it_date, it_time, (*IT_DAYS.split(), "domani")),
    "ru": Grammar(RU_LEXICON, ru_number, ru_date, ru_time, (*RU_DAYS.split(), "завтра")),
}


# --- Text -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """One spoken unit: its written text, of one word or more, and the clips that say it."""

    text: str
    clips: tuple[str, ...]


def pronounce(text: str, lexicon: Lexicon) -> list[Unit] | None:
    """Cut ``text`` into units of ``lexicon``, the longest first; None where some word has no recording."""
    words = text.split()
    units: list[Unit] = []
    start = 0
    while start < len(words):
        lengths = range(min(MAX_UNIT_WORDS, len(words) - start), 0, -1)
        candidates = (" ".join(words[start : start + length]) for length in lengths)
        entry = next((candidate for candidate in candidates if candidate in lexicon), None)
        if entry is None:
            return None
        units.append(Unit(entry, lexicon[entry]))
        start += entry.count(" ") + 1
    return units


FIRST_DATE = datetime.date(2001, 1, 1)
DATES = (datetime.date(2101, 1, 1) - FIRST_DATE).days


def draw_number(grammar: Grammar, rng: np.random.Generator) -> str:
    """A cardinal number of two to seven digits, the long ones mostly round."""
    digits = int(rng.integers(2, 8))
    significant = int(rng.integers(1, min(digits, 4) + 1))
    leading = int(rng.integers(10 ** (significant - 1), 10**significant))
    return grammar.number(leading * 10 ** (digits - significant))


def draw_telephone(grammar: Grammar, rng: np.random.Generator) -> str:
    """Three to eight digits, one by one or in pairs, as people say them."""
    if rng.random() < 0.5:
        groups = rng.integers(0, 10, size=rng.integers(3, 9))
    else:
        # No multiples of ten: with the pair after it, one sounds like another number (80 12 and 92 in French).
        pairs = rng.integers(1, 10, size=(rng.integers(2, 5), 2))
        groups = pairs @ (10, 1)
    return " ".join(grammar.number(int(group)) for group in groups)


def draw_date(grammar: Grammar, rng: np.random.Generator) -> str:
    """A date of the 21st century, without its year."""
    date = FIRST_DATE + datetime.timedelta(days=int(rng.integers(DATES)))
    return grammar.date(date.isoweekday() % 7, date.day, date.month - 1)


def draw_time(grammar: Grammar, rng: np.random.Generator) -> str:
    """A time of day, every other one with the day before it."""
    time = grammar.time(int(rng.integers(24)), int(rng.integers(60)) if rng.random() < 0.9 else 0)
    return f"{rng.choice(grammar.days)} {time}" if rng.random() < 0.5 else time


KINDS: dict[str, Callable[[Grammar, np.random.Generator], str]] = {
    "number": draw_number,
    "telephone": draw_telephone,
    "date": draw_date,
    "time": draw_time,
}
KIND_SHARES = (0.4, 0.25, 0.15, 0.2)


@dataclass(frozen=True)
class Utterance:
    """What will be said: its kind (a key of :data:`KINDS`) and its units in order."""

    kind: str
    units: tuple[Unit, ...]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(unit.text for unit in self.units)


def fits(utterance: Utterance, clips: Mapping[str, np.ndarray]) -> bool:
    """Whether the utterance keeps within MIN_SECONDS and MAX_SECONDS whatever the augmentation draws."""
    spoken = sum(len(clips[name]) for unit in utterance.units for name in unit.clips) / SAMPLE_RATE
    joins = sum(len(unit.clips) - 1 for unit in utterance.units) * JOIN_SAMPLES / SAMPLE_RATE
    gaps = len(utterance.units) - 1
    shortest = (spoken - joins + gaps * GAP_SECONDS[0] + 2 * EDGE_SECONDS[0]) / TRAIN_AUGMENTATION.speed[1]
    longest = (spoken - joins + gaps * GAP_SECONDS[1] + 2 * EDGE_SECONDS[1]) / TRAIN_AUGMENTATION.speed[0]
    return shortest >= MIN_SECONDS and longest <= MAX_SECONDS


def draw_utterance(
    grammar: Grammar, rng: np.random.Generator, accept: Callable[[Utterance], bool]
) -> Utterance | None:
    """Draw texts until one has recordings and is accepted; None after DRAWS_PER_UTTERANCE."""
    for draw in range(DRAWS_PER_UTTERANCE):
        # Staying with a kind for a while keeps the shares where a language refuses many of its texts; leaving it at
        # last keeps going where its distinct texts are used up.
        if draw % DRAWS_PER_KIND == 0:
            kind = str(rng.choice(list(KINDS), p=KIND_SHARES))
        units = pronounce(KINDS[kind](grammar, rng), grammar.lexicon)
        if units is not None and accept(utterance := Utterance(kind, tuple(units))):
            return utterance
    return None


def draw_splits(
    grammar: Grammar, clips: Mapping[str, np.ndarray], counts: Mapping[str, int], rng: np.random.Generator
) -> dict[str, list[Utterance]]:
    """Draw every split's utterances of one language; no text occurs twice, in one split or across them.

    Args:
        grammar: the language.
        clips: samples by clip name, to keep durations in bounds.
        counts: utterances per split; "train" must be among them.
        rng: the source of chance.

    Returns:
        For each split its utterances. Those of "train" use every entry of the lexicon.

    Raises:
        ValueError: the training split is too small to use the whole lexicon, or the texts run out.
    """
    seen: set[str] = set()
    unused = set(grammar.lexicon)

    def accept(utterance: Utterance) -> bool:
        covers = not unused or any(unit.text in unused for unit in utterance.units)
        return covers and utterance.text not in seen and fits(utterance, clips)

    splits: dict[str, list[Utterance]] = {}
    # Training comes first: while words are unused, only utterances with one of them are accepted.
    for split in sorted(counts, key=lambda name: name != "train"):
        splits[split] = []
        for _ in range(counts[split]):
            utterance = draw_utterance(grammar, rng, accept)
            if utterance is None:
                raise ValueError(f"found only {len(splits[split])} utterances for {split!r}; unused words: {unused}")
            splits[split].append(utterance)
            seen.add(utterance.text)
            unused -= {unit.text for unit in utterance.units}
        if unused:
            raise ValueError(f"{counts['train']} training utterances leave words unused: {sorted(unused)}")
    rng.shuffle(splits["train"])
    return splits


# --- Sound ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Ranges that an utterance's sound is drawn from.

    Attributes:
        speed: factor on tempo and pitch together.
        gain_db: change of level in decibels.
        snr_db: speech power over noise power in decibels.
    """

    speed: tuple[float, float]
    gain_db: tuple[float, float]
    snr_db: tuple[float, float]


TRAIN_AUGMENTATION = Augmentation(speed=(0.9, 1.1), gain_db=(-9.0, 6.0), snr_db=(15.0, 40.0))
TEST_AUGMENTATION = Augmentation(speed=(0.95, 1.05), gain_db=(-3.0, 3.0), snr_db=(30.0, 45.0))


def join_clips(clips: Sequence[np.ndarray]) -> np.ndarray:
    """One word from its recordings, cross-faded over the margins; its ends fade in and out.

    Args:
        clips: at least one, each of shape ``(samples,)``, 16 kHz.

    Returns:
        Shape ``(samples,)``.
    """
    rise = np.linspace(0.0, 1.0, JOIN_SAMPLES, dtype=np.float32)
    word = clips[0]
    for clip in clips[1:]:
        overlap = word[-JOIN_SAMPLES:] * rise[::-1] + clip[:JOIN_SAMPLES] * rise
        word = np.concatenate([word[:-JOIN_SAMPLES], overlap, clip[JOIN_SAMPLES:]])
    fade = np.linspace(0.0, 1.0, FADE_SAMPLES, dtype=np.float32)
    word = word.copy()
    word[:FADE_SAMPLES] *= fade
    word[-FADE_SAMPLES:] *= fade[::-1]
    return word


def noise_like(length: int, rng: np.random.Generator) -> np.ndarray:
    """White or pink noise of unit power, each as likely: float32 of shape ``(length,)``."""
    # A power of two: the transform of a length with large prime factors is several times slower.
    noise = rng.standard_normal(1 << (length - 1).bit_length())
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
        noise = np.fft.irfft(spectrum)
    noise = noise[:length]
    return (noise / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)


def render(
    units: Sequence[Unit], clips: Mapping[str, np.ndarray], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Speak ``units``.

    Args:
        units: what to say.
        clips: samples by clip name, each of shape ``(samples,)``, 16 kHz.
        augmentation: the ranges to draw from.
        rng: the source of chance.

    Returns:
        The samples, float32 in [-1, 1] of shape ``(samples,)``, and the start and end of each unit in seconds.
    """
    pieces = [_silence(EDGE_SECONDS, rng)]
    spans: list[tuple[int, int]] = []
    position = len(pieces[0])
    for index, unit in enumerate(units):
        if index:
            pieces.append(_silence(GAP_SECONDS, rng))
            position += len(pieces[-1])
        pieces.append(join_clips([clips[name] for name in unit.clips]))
        spans.append((position, position + len(pieces[-1])))
        position = spans[-1][1]
    pieces.append(_silence(EDGE_SECONDS, rng))

    speed = rng.uniform(*augmentation.speed)
    speech = soxr.resample(np.concatenate(pieces), SAMPLE_RATE * speed, SAMPLE_RATE)
    power = np.mean(np.square(speech))
    noise_power = power * 10 ** (-rng.uniform(*augmentation.snr_db) / 10)
    samples = speech + np.float32(np.sqrt(noise_power)) * noise_like(len(speech), rng)
    gain = 10 ** (rng.uniform(*augmentation.gain_db) / 20)
    samples *= np.float32(min(gain, 0.99 / np.max(np.abs(samples))))

    duration = len(samples) / SAMPLE_RATE
    scale = SAMPLE_RATE * speed
    return samples, [(round(start / scale, 4), min(round(end / scale, 4), duration)) for start, end in spans]


def render_silence(rng: np.random.Generator) -> np.ndarray:
    """Nobody speaks: noise of any level, hum of the mains, both, or nothing at all; float32 of shape ``(samples,)``."""
    length = int(rng.uniform(MIN_SECONDS, MAX_SECONDS) * SAMPLE_RATE)
    noise_level, hum_level = (10 ** (level / 20) for level in rng.uniform(*SILENCE_DB, size=2))
    kind = rng.choice(["noise", "hum", "both", "nothing"], p=[0.5, 0.1, 0.3, 0.1])
    samples = np.zeros(length, dtype=np.float32)
    if kind in ("noise", "both"):
        samples += np.float32(noise_level) * noise_like(length, rng)
    if kind in ("hum", "both"):
        frequency, phase = rng.choice([50.0, 60.0]), rng.uniform(0, 2 * np.pi)
        harmonics = np.arange(1, 6)[:, None]
        waves = np.sin(harmonics * (2 * np.pi * frequency * np.arange(length) / SAMPLE_RATE + phase)) / harmonics
        samples += np.float32(hum_level) * waves.sum(axis=0).astype(np.float32)
    return np.clip(samples, -0.99, 0.99)


def _silence(seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Silence of a random length in ``seconds``."""
    return np.zeros(int(rng.uniform(*seconds) * SAMPLE_RATE), dtype=np.float32)


# --- Data set -------------------------------------------------------------------------------------------------------


def load_clips(voice: Path, lexicon: Lexicon) -> dict[str, np.ndarray]:
    """Load every clip that ``lexicon`` uses from the folder ``voice``."""
    names = sorted({name for clips in lexicon.values() for name in clips})
    return {name: load_clip(voice / f"{name}.g722") for name in names}


def compose_dataset(
    output: str | Path,
    clips_dir: str | Path,
    counts: Mapping[str, int],
    seed: int = 0,
    languages: Sequence[str] = tuple(GRAMMARS),
    silences: Mapping[str, int] | None = None,
) -> None:
    """Write ``audio/<split>/<id>.flac`` (16 kHz, mono, 16 bit) and one ``<split>.jsonl`` per split.

    A row of the latter holds "id", "audio" (relative to the file's folder), "text", "language", "duration" in
    seconds, and "words": the "word", "start" and "end" in seconds of each spoken unit. A ``.jsonl`` file appears
    when all audio of its split is there. A recording without speech has an empty text, no words and the language
    ``None``. The same arguments give the same bytes, and each language's are the same
    whichever others are asked for.

    Args:
        output: the data set's folder.
        clips_dir: holds one folder of clips per language, as :func:`speech.fetch_speech` makes them.
        counts: utterances per language for each split: "train" and any others.
        seed: the seed of all chance.
        languages: keys of :data:`GRAMMARS`.
        silences: recordings without speech for each split; none where it is not named.

    Raises:
        ValueError: a language is unknown, "train" is missing from ``counts`` or too small to use every word.
    """
    unknown = sorted(set(languages) - set(GRAMMARS))
    if unknown:
        raise ValueError(f"no grammar for languages {unknown}; choose from {sorted(GRAMMARS)}")
    if "train" not in counts:
        raise ValueError(f"counts names the splits {sorted(counts)}, which lack 'train'")
    output, clips_dir = Path(output), Path(clips_dir)
    clips = {language: load_clips(clips_dir / language, GRAMMARS[language].lexicon) for language in languages}
    # All texts before any sound, so that a refusal comes at once.
    drawn = {
        language: draw_splits(GRAMMARS[language], clips[language], counts, _generator(seed, language))
        for language in languages
    }
    for splits in drawn.values():
        assert_disjoint(splits)
    silences = silences or {}
    total = sum(counts.values()) * len(languages) + sum(silences.values())
    progress = tqdm(total=total, desc="composing", unit=" utterances")
    with progress:
        for split in counts:
            rows = []
            for language in languages:
                for index, utterance in enumerate(drawn[language][split]):
                    name = f"{language}-{utterance.kind}-{index:05d}"
                    rng = _generator(seed, language, split, index)
                    rows.append(_write_utterance(output, split, name, language, utterance, clips[language], rng))
                    progress.update()
            for index in range(silences.get(split, 0)):
                samples = render_silence(_generator(seed, "silence", split, index))
                rows.append(_write_recording(output, split, f"silence-{index:05d}", samples))
                progress.update()
            _write_rows(output / f"{split}.jsonl", rows)


def assert_disjoint(splits: Mapping[str, Sequence[Utterance]]) -> None:
    """Raise where one text occurs twice, in one split or in two."""
    texts = [utterance.text for utterances in splits.values() for utterance in utterances]
    assert len(texts) == len(set(texts)), "a text occurs twice"


def _generator(seed: int, *path: str | int) -> np.random.Generator:
    """A generator for one place in the data set, so that nothing depends on the order of work."""
    return np.random.default_rng([seed, *(zlib.crc32(str(step).encode()) for step in path)])


def _write_utterance(
    output: Path,
    split: str,
    name: str,
    language: str,
    utterance: Utterance,
    clips: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> dict:
    """Write one utterance's sound, and return its row."""
    augmentation = TRAIN_AUGMENTATION if split == "train" else TEST_AUGMENTATION
    samples, spans = render(utterance.units, clips, augmentation, rng)
    words = [
        {"word": unit.text, "start": start, "end": end}
        for unit, (start, end) in zip(utterance.units, spans, strict=True)
    ]
    return _write_recording(output, split, name, samples, utterance.text, language, words)


def _write_recording(
    output: Path,
    split: str,
    name: str,
    samples: np.ndarray,
    text: str = "",
    language: str | None = None,
    words: Sequence[dict] = (),
) -> dict:
    audio = Path("audio") / split / f"{name}.flac"
    (output / audio).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(output / audio, samples, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": name,
        "audio": audio.as_posix(),
        "text": text,
        "language": language,
        "duration": len(samples) / SAMPLE_RATE,
        "words": list(words),
    }


def _write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write ``rows`` as JSON lines, all or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch the recordings where they are missing, and compose the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/demo"), help="folder of the data set")
    parser.add_argument("--clips", type=Path, default=Path("data/speech"), help="folder of the recordings")
    parser.add_argument("--train-per-language", type=int, default=600)
    parser.add_argument("--validation-per-language", type=int, default=20)
    parser.add_argument("--test-per-language", type=int, default=40)
    parser.add_argument("--train-silences", type=int, default=100, help="recordings without speech")
    parser.add_argument("--test-silences", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--languages", nargs="+", choices=sorted(GRAMMARS), default=list(GRAMMARS))
    options = parser.parse_args(arguments)
    fetch_speech(options.clips, options.languages)
    counts = {
        "train": options.train_per_language,
        "validation": options.validation_per_language,
        "test": options.test_per_language,
    }
    silences = {"train": options.train_silences, "test": options.test_silences}
    compose_dataset(options.output, options.clips, counts, options.seed, options.languages, silences)


if __name__ == "__main__":
    main()
