"""BLEU and chrF of translations, by direction."""

from collections.abc import Sequence
from typing import Any

from .normalization import is_unspaced, language_code


def translation_report(
    references: Sequence[str],
    hypotheses: Sequence[str],
    target_languages: Sequence[str],
    source_languages: Sequence[str | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Score translations with sacreBLEU (Post 2018, arXiv 1804.08771).

    Args:
        references (`Sequence[str]`): True translations.
        hypotheses (`Sequence[str]`): Translations of the model.
        target_languages (`Sequence[str]`): Code or English name of the language of each translation.
        source_languages (`Sequence[str]`, *optional*): Language that is spoken in each recording.

    Returns:
        `dict[str, dict]`: For each direction, such as `"es → en"`: `recordings`; `bleu`, with sacreBLEU's tokenizer `13a`, `zh`
        for Chinese, and `char` for other languages without spaces between words; `chrf`, chrF2; and sacreBLEU's signatures
        `bleu_signature` and `chrf_signature`, which make the scores comparable.

    Raises:
        `ValueError`: If the lengths differ or the sequences are empty.
        `ImportError`: If sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise ImportError('BLEU and chrF need sacreBLEU: `pip install "llm-asr[translation]"`.') from error

    sources = [None] * len(references) if source_languages is None else source_languages
    lengths = [len(column) for column in (references, hypotheses, target_languages, sources)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(
            "`references`, `hypotheses`, `target_languages` and `source_languages` must have the same length and not be empty, "
            f"got {lengths}."
        )
    directions: dict[tuple[str, str], list[int]] = {}
    for index, (source, target) in enumerate(zip(sources, target_languages, strict=True)):
        directions.setdefault((source or "?", target), []).append(index)
    report = {}
    for (source, target), rows in sorted(directions.items()):
        code = language_code(target)
        tokenizer = "zh" if code in ("zh", "cmn", "yue") else "char" if is_unspaced(target) else "13a"
        scores: dict[str, Any] = {"recordings": len(rows)}
        for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
            found = metric.corpus_score([hypotheses[row] for row in rows], [[references[row] for row in rows]])
            scores |= {name: found.score, f"{name}_signature": str(metric.get_signature())}
        report[f"{source} → {target}"] = scores
    return report


__all__ = ["translation_report"]
