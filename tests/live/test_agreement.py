"""Which words of changing hypotheses are committed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_asr.live.agreement import Agreement


def commit(agreement, hypotheses, last):
    """The words that each hypothesis and the last one commit."""
    found = []
    for words in hypotheses:
        first, end = agreement.update(words.split())
        found.append(" ".join(words.split()[first:end]))
    first, end = agreement.finish(last.split())
    return [*found, " ".join(last.split()[first:end])]


@pytest.mark.parametrize(
    ("num_passes", "expected"),
    [
        (1, ["a b x", "d", "e", "f"]),
        (2, ["", "a b", "c d", "e f"]),
        (3, ["", "", "a b", "c d e f"]),
        (None, ["", "", "", "a b c d e f"]),
    ],
)
def test_words_that_passes_agree_on(num_passes, expected):
    hypotheses = ["a b x", "a b c d", "a b c d e"]
    assert commit(Agreement(num_passes), hypotheses, "a b c d e f") == expected


@pytest.mark.parametrize(
    ("last", "rest"),
    [
        ("a b c d", "c d"),
        ("a x c d", "c d"),
        ("a c d", "d"),
        ("z a b c d", "c d"),
        ("", ""),
        ("a", ""),
    ],
)
def test_a_last_hypothesis_that_differs_repeats_nothing(last, rest):
    assert commit(Agreement(2), ["a b", "a b"], last) == ["", "a b", rest]


texts = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join)


@given(st.sampled_from([1, 2, 3, None]), st.lists(texts, max_size=5), texts)
def test_commitments_only_grow(num_passes, hypotheses, last):
    agreement = Agreement(num_passes)
    commits = commit(agreement, hypotheses, last)
    # Each commitment is a part of the hypothesis of its pass, and what was committed before is not changed.
    assert agreement._committed == " ".join(commits).split()


@given(texts, st.lists(st.integers(0, 6), max_size=4))
def test_hypotheses_that_grow_give_the_last_one(last, lengths):
    words = last.split()
    hypotheses = [" ".join(words[:length]) for length in sorted(lengths)]
    assert " ".join(commit(Agreement(2), hypotheses, last)).split() == words
