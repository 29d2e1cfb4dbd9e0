import pytest
import torch

from llm_asr.modeling.merging import find_audio_runs, merge_audio


AUDIO = 9
PAD = 0


def merge(rows, mask, audio_lengths, padding_side="right"):
    """Token `t` is embedded as `[t, -t]`, and the n-th packed audio embedding is `[100 + n, 0]`."""
    input_ids, mask = torch.tensor(rows), torch.tensor(mask)
    audio_lengths = torch.tensor(audio_lengths)
    number = torch.arange(int(audio_lengths.sum()), dtype=torch.float32)
    audio_embeds = torch.stack([100 + number, 0 * number], dim=-1).requires_grad_()
    inputs_embeds = torch.stack([input_ids, -input_ids], dim=-1).float()
    runs = find_audio_runs(input_ids, mask, AUDIO, len(audio_lengths))
    return merge_audio(inputs_embeds, mask, runs, audio_embeds, audio_lengths, padding_side), audio_embeds


def first_channel(merged):
    return merged.inputs_embeds[..., 0].tolist()


def test_rows_without_padding():
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [2, 2])
    assert first_channel(merged) == [[1, 100, 101, 2], [3, 102, 103, 4]]
    assert merged.inputs_embeds[..., 1].tolist() == [[-1, 0, 0, -2], [-3, 0, 0, -4]]
    assert merged.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert merged.source.tolist() == [[0, -1, -1, 2], [0, -1, -1, 2]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("input_side", ["left", "right"])
def test_padding_of_the_input_is_dropped_and_rows_are_padded_anew(input_side, padding_side):
    short, mask = [1, AUDIO, 2], [1, 1, 1]
    padded = [[PAD, PAD, *short], [0, 0, *mask]] if input_side == "left" else [[*short, PAD, PAD], [*mask, 0, 0]]
    offset = 2 if input_side == "left" else 0
    merged, _ = merge(
        [padded[0], [3, 4, AUDIO, 5, 6]], [padded[1], [1, 1, 1, 1, 1]], [3, 2], padding_side=padding_side
    )
    row, mask, source = [1, 100, 101, 102, 2], [1] * 5, [offset, -1, -1, -1, offset + 2]
    positions = list(range(5))
    if padding_side == "left":
        row, mask, source, positions = [0, *row], [0, *mask], [-1, *source], [0, *positions]
    else:
        row, mask, source, positions = [*row, 0], [*mask, 0], [*source, -1], [*positions, 4]
    assert first_channel(merged) == [row, [3, 4, 103, 104, 5, 6]]
    assert merged.attention_mask.tolist() == [mask, [1] * 6]
    assert merged.source.tolist() == [source, [0, 1, -1, -1, 3, 4]]
    assert merged.position_ids.tolist() == [positions, [0, 1, 2, 3, 4, 5]]


def test_the_merged_batch_is_no_longer_than_its_longest_row():
    """The longest recording stands in the shortest prompt."""
    merged, _ = merge([[1, AUDIO, PAD, PAD], [2, 3, AUDIO, 4]], [[1, 1, 0, 0], [1, 1, 1, 1]], [4, 1])
    assert first_channel(merged) == [[1, 100, 101, 102, 103], [2, 3, 104, 4, 0]]


def test_several_recordings_in_a_row():
    merged, _ = merge(
        [[AUDIO, 1, AUDIO, AUDIO], [2, AUDIO, 3, PAD], [4, 5, PAD, PAD]],
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]],
        [2, 1, 3, 2],
    )
    assert first_channel(merged) == [
        [100, 101, 1, 102, 103, 104, 105],
        [2, 106, 107, 3, 0, 0, 0],
        [4, 5, 0, 0, 0, 0, 0],
    ]
    assert merged.source.tolist() == [
        [-1, -1, 1, -1, -1, -1, -1],
        [0, -1, -1, 2, -1, -1, -1],
        [0, 1, -1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_recordings_of_zero_length_vanish(padding_side):
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [0, 1], padding_side)
    row = [0, 1, 2] if padding_side == "left" else [1, 2, 0]
    assert first_channel(merged) == [row, [3, 100, 4]]


def test_all_recordings_of_zero_length():
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [0, 0])
    assert first_channel(merged) == [[1, 2], [3, 4]]


def test_single_tokens_that_happen_to_be_as_long_as_their_recordings():
    merged, _ = merge([[1, AUDIO, 2]], [[1, 1, 1]], [1])
    assert first_channel(merged) == [[1, 100, 2]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_expanded_runs_are_filled_in_place(padding_side):
    """The layout stays, whichever side rows would be padded on."""
    merged, _ = merge(
        [[PAD, 1, AUDIO, AUDIO, 2], [AUDIO, 3, AUDIO, AUDIO, AUDIO]],
        [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        [2, 1, 3],
        padding_side,
    )
    assert first_channel(merged) == [[0, 1, 100, 101, 2], [102, 3, 103, 104, 105]]
    assert merged.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert merged.source.tolist() == [[-1, 1, -1, -1, 4], [-1, 1, -1, -1, -1]]
    assert merged.position_ids.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_run_does_not_go_on_in_the_next_row():
    runs = find_audio_runs(torch.tensor([[1, AUDIO, AUDIO], [AUDIO, AUDIO, 2]]), torch.ones(2, 3), AUDIO, 2)
    assert runs.lengths.tolist() == [2, 2]


def test_audio_tokens_in_padding_do_not_count():
    """Some tokenizers pad with a token that also stands in the text."""
    input_ids = torch.tensor([[AUDIO, AUDIO, 1, AUDIO]])
    runs = find_audio_runs(input_ids, torch.tensor([[0, 0, 1, 1]]), AUDIO, 1)
    assert runs.lengths is None
    assert runs.mask.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize(
    ("row", "num_recordings", "message"),
    [
        ([1, AUDIO, 2, AUDIO], 3, r"2 audio token\(s\) in 2 run\(s\) and there are 3 recording\(s\)"),
        ([1, AUDIO, AUDIO, AUDIO], 2, r"3 audio token\(s\) in 1 run\(s\) and there are 2 recording\(s\)"),
        ([1, 2, 3, 4], 1, r"0 audio token\(s\) in 0 run\(s\) and there are 1 recording\(s\)"),
    ],
)
def test_tokens_that_match_no_recordings_raise_with_both_counts(row, num_recordings, message):
    input_ids = torch.tensor([row])
    with pytest.raises(ValueError, match=message):
        find_audio_runs(input_ids, torch.ones_like(input_ids), AUDIO, num_recordings)


def test_runs_of_another_length_raise_with_both_lengths():
    with pytest.raises(ValueError, match=r"\[2, 3\] audio tokens .* \[2, 4\] embeddings"):
        merge([[AUDIO, AUDIO, 1, AUDIO, AUDIO, AUDIO]], [[1] * 6], [2, 4])


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_labels_follow_their_tokens(padding_side):
    merged, _ = merge(
        [[1, AUDIO, 2, 3, 4], [5, AUDIO, 6, PAD, PAD]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [3, 2], padding_side
    )
    labels = merged.spread(torch.tensor([[-100, -100, -100, 3, 4], [-100, -100, 6, 7, 7]]))
    short = [-100, -100, -100, 6]
    short = [-100] * 3 + short if padding_side == "left" else short + [-100] * 3
    # What stands over padding, here 7, is no target.
    assert labels.tolist() == [[-100, -100, -100, -100, -100, 3, 4], short]


def test_labels_follow_their_tokens_in_place():
    merged, _ = merge([[1, AUDIO, AUDIO, 3, 4]], [[1] * 5], [2])
    assert merged.spread(torch.tensor([[-100, 8, 8, 3, 4]])).tolist() == [[-100, -100, -100, 3, 4]]


@pytest.mark.parametrize("rows", [[[1, AUDIO, 2]], [[1, AUDIO, AUDIO, AUDIO, 2]]])
def test_gradients_reach_every_audio_embedding_once(rows):
    merged, audio_embeds = merge(rows, [[1] * len(rows[0])], [3])
    merged.inputs_embeds.sum().backward()
    assert audio_embeds.grad.tolist() == [[1.0, 1.0]] * 3


def test_audio_takes_the_dtype_of_the_text():
    runs = find_audio_runs(torch.tensor([[1, AUDIO]]), torch.ones(1, 2), AUDIO, 1)
    merged = merge_audio(
        torch.ones(1, 2, 4).bfloat16(), torch.ones(1, 2), runs, torch.ones(3, 4), torch.tensor([3]), "right"
    )
    assert merged.inputs_embeds.dtype == torch.bfloat16
    assert merged.attention_mask.dtype == torch.long
