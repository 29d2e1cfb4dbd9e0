"""
Grammars of numbers, dates and times in five languages, and the recordings of their words.

Transcripts are in lower case, without punctuation, and with spaces instead of hyphens.

* English numbers have no "and", as in American English ("one hundred five").
* French "vingt", "cent" and "million" have a plural s in writing. The recordings sound the same with and without it.
* Italian writes a number below one hundred, a multiple of one hundred, and thousands ("duemila", "trentamila") each as one word,
  and separates these groups ("duemila trecento quarantacinque"). Numbers whose groups elide ("centottanta") are left out. A word
  may join two or three recordings ("venti" + "tre": "ventitré").
* Russian has no recordings of feminine numerals, of hundreds above one, and of "тысяч", so numbers with these words are left
  out. Dates have the form "третий вторник марта", because the recorded ordinals are masculine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from num2words import num2words


Lexicon = Mapping[str, tuple[str, ...]]
"""Maps a written text of one or more words to the clips that say it, as paths without suffix."""


@dataclass(frozen=True)
class Unit:
    """One spoken unit: its written text of one or more words, and the clips that say it."""

    text: str
    clips: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """
    The texts of a telephone system in one language.

    Attributes:
        lexicon: Texts with recordings.
        number: Writes a cardinal number.
        date: Writes a date from the weekday (0 is Sunday), the day of the month and the month (0 is January).
        time: Writes the time of an appointment from hour (0–23) and minute.
        days: Words that may precede a time: the weekdays and "tomorrow".
    """

    lexicon: Lexicon
    number: Callable[[int], str]
    date: Callable[[int, int, int], str]
    time: Callable[[int, int], str]
    days: tuple[str, ...]


def plain(text: str) -> str:
    """Convert `text` to the form of transcripts: lower case, no commas, spaces instead of hyphens."""
    return " ".join(text.lower().replace(",", " ").replace("-", " ").split())


def _clips(folder_prefix: str, words: str) -> dict[str, tuple[str, ...]]:
    """Number `words` from 0, as the packages number weekdays (from Sunday) and months."""
    return {word: (f"digits/{folder_prefix}-{index}",) for index, word in enumerate(words.split())}


def _numerals(language: str, numbers: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """The lexicon of `numbers` that have a recording of their own."""
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
    """31000 → "treinta y un mil". "uno" loses its o before a counted noun; num2words does not do this."""
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
    """Write "à sept heures trente". One and twenty-one have the feminine form "une"."""
    text = f"à {re.sub('un$', 'une', fr_number(hour))} {'heures' if hour > 1 else 'heure'}"
    return f"{text} {fr_number(minute)}" if minute else text


IT_DAYS = "domenica lunedì martedì mercoledì giovedì venerdì sabato"
IT_MONTHS = "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"
IT_OWN_CLIP = {*BASIC_NUMBERS, *range(21, 100, 10), *range(28, 100, 10)}


def _it_numerals() -> dict[str, tuple[str, ...]]:
    """Number words: all below one hundred, the hundreds, and thousands up to twenty, by tens and by hundreds."""
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
    """2345 → "duemila trecento quarantacinque". 180 stays "centottanta", which is not in the lexicon."""
    text = num2words(number, lang="it")
    places = (number // 1_000_000 * 1_000_000, number % 1_000_000 // 1000 * 1000, number % 1000 // 100 * 100)
    groups = [num2words(place, lang="it") for place in (*places, number % 100) if place]
    elided = "".join(groups) != text.replace(" e ", "")
    return text if elided else " ".join(groups)


def it_date(weekday: int, day: int, month: int) -> str:
    """Write "martedì ventuno marzo"."""
    return f"{IT_DAYS.split()[weekday]} {'primo' if day == 1 else it_number(day)} {IT_MONTHS.split()[month]}"


def it_time(hour: int, minute: int) -> str:
    """Write "alle sette e trenta". Midnight is "a mezzanotte", and one o'clock is "all'una"."""
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
    """1005 → "тысяча пять". A single thousand is spoken without "одна"."""
    return re.sub(r"^одна тысяча\b", "тысяча", plain(num2words(number, lang="ru")))


def ru_date(weekday: int, day: int, month: int) -> str:
    """Write "третий вторник марта". The ordinal has the gender of the weekday."""
    ordinal = num2words((day - 1) // 7 + 1, to="ordinal", lang="ru", gender=_ru_gender(RU_DAYS.split()[weekday]))
    return f"{ordinal} {RU_DAYS.split()[weekday]} {RU_MONTHS.split()[month]}"


def ru_time(hour: int, minute: int) -> str:
    """Write "в семь часов тридцать минут", with each noun in the form for its number."""
    text = f"в {ru_number(hour)} {_ru_counted(hour, 'час', 'часа', 'часов')}"
    if minute == 0:
        return text
    spoken_minute = num2words(minute, lang="ru", gender="f")
    return f"{text} {spoken_minute} {_ru_counted(minute, 'минута', 'минуты', 'минут')}"


def _ru_gender(noun: str) -> str:
    """Gender of a nominative noun by its last letter, as a letter of num2words."""
    return {"а": "f", "е": "n"}.get(noun[-1], "m")


def _ru_counted(count: int, one: str, few: str, many: str) -> str:
    """The form of a noun after the number `count`."""
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
