import pytest
import torch

from llm_asr.modeling.merging import find_audio_runs, merge_audio


AUDIO = 9
PAD = 0


def merge(rows, mask, audio_lengths, padding_side="right"):
    """Merge rows. The embedding of token `t` is `[t, -t]`, and the n-th packed audio embedding is `[100 + n, 0]`."""
    input_ids, mask = torch.tensor(rows), torch.tensor(mask)
    audio_lengths = torch.tensor(audio_lengths)
    number = torch.arange(int(audio_lengths.sum()), dtype=torch.float32)
    audio_embeds = torch.stack([100 + number, 0 * number], dim=-1).requires_grad_()
    inputs_embeds = torch.stack([input_ids, -input_ids], dim=-1).float()
    runs = find_audio_runs(input_ids == AUDIO, len(audio_lengths))
    return merge_audio(inputs_embeds, mask, runs, audio_embeds, audio_lengths, padding_side), audio_embeds


def first_channel(merged):
    return merged.inputs_embeds[..., 0].tolist()


def test_rows_without_padding():
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [2, 2])
    assert first_channel(merged) == [[1, 100, 101, 2], [3, 102, 103, 4]]
    assert merged.inputs_embeds[..., 1].tolist() == [[-1, 0, 0, -2], [-3, 0, 0, -4]]
    assert merged.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert merged.positions.tolist() == [[0, 2, 3], [0, 2, 3]]
    assert merged.is_text.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("input_side", ["left", "right"])
def test_padding_of_the_input_is_removed_and_rows_are_padded_again(input_side, padding_side):
    short, mask = [1, AUDIO, 2], [1, 1, 1]
    padded = [[PAD, PAD, *short], [0, 0, *mask]] if input_side == "left" else [[*short, PAD, PAD], [*mask, 0, 0]]
    merged, _ = merge(
        [padded[0], [3, 4, AUDIO, 5, 6]], [padded[1], [1, 1, 1, 1, 1]], [3, 2], padding_side=padding_side
    )
    row, mask, places = [1, 100, 101, 102, 2], [1] * 5, [0, 3, 4]
    positions = list(range(5))
    if padding_side == "left":
        row, mask, places, positions = [0, *row], [0, *mask], [1, 4, 5], [0, *positions]
    else:
        row, mask, positions = [*row, 0], [*mask, 0], [*positions, 4]
    assert first_channel(merged) == [row, [3, 4, 103, 104, 5, 6]]
    assert merged.attention_mask.tolist() == [mask, [1] * 6]
    found, other = merged.positions.tolist()
    assert (found[2:] if input_side == "left" else found[:3]) == places
    assert other == [0, 1, 3, 4, 5]
    assert merged.position_ids.tolist() == [positions, [0, 1, 2, 3, 4, 5]]


def test_the_merged_batch_is_no_longer_than_its_longest_row():
    """The longest recording is in the shortest prompt."""
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
    # Padding after a row has the position of its end.
    assert merged.positions.tolist() == [[1, 2, 3, 6], [0, 2, 3, 3], [0, 1, 1, 1]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_recordings_of_zero_length_are_removed(padding_side):
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [0, 1], padding_side)
    row = [0, 1, 2] if padding_side == "left" else [1, 2, 0]
    assert first_channel(merged) == [row, [3, 100, 4]]


def test_all_recordings_of_zero_length():
    merged, _ = merge([[1, AUDIO, 2], [3, AUDIO, 4]], [[1, 1, 1], [1, 1, 1]], [0, 0])
    assert first_channel(merged) == [[1, 2], [3, 4]]


def test_a_single_token_is_replaced_by_one_embedding():
    merged, _ = merge([[1, AUDIO, 2]], [[1, 1, 1]], [1])
    assert first_channel(merged) == [[1, 100, 2]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_expanded_runs_are_replaced_in_place(padding_side):
    """The layout does not change with the padding side."""
    merged, _ = merge(
        [[PAD, 1, AUDIO, AUDIO, 2], [AUDIO, 3, AUDIO, AUDIO, AUDIO]],
        [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        [2, 1, 3],
        padding_side,
    )
    assert first_channel(merged) == [[0, 1, 100, 101, 2], [102, 3, 103, 104, 105]]
    assert merged.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert merged.positions.tolist() == [list(range(5))] * 2
    assert merged.is_text.tolist() == [[False, True, False, False, True], [False, True, False, False, False]]
    assert merged.position_ids.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_run_does_not_continue_in_the_next_row():
    runs = find_audio_runs(torch.tensor([[1, AUDIO, AUDIO], [AUDIO, AUDIO, 2]]) == AUDIO, 2)
    assert runs.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("row", [[AUDIO, 1, 2], [AUDIO, AUDIO, AUDIO, 1, 2]])
def test_a_masked_recording_keeps_its_place_and_stays_masked(row):
    """As in Transformers' audio models, the attention mask does not change the assignment of recordings to tokens."""
    visible = [int(token != AUDIO) for token in row]
    merged, _ = merge([row, [AUDIO] * len(row[:-2]) + [3, 4]], [visible, [1] * len(row)], [3, 3])
    assert merged.inputs_embeds[..., 0].tolist() == [[100, 101, 102, 1, 2], [103, 104, 105, 3, 4]]
    assert merged.attention_mask.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("row", "num_recordings", "message"),
    [
        ([1, AUDIO, 2, AUDIO], 3, r"2 audio token\(s\) in 2 run\(s\) and there are 3 recording\(s\)"),
        ([1, AUDIO, AUDIO, AUDIO], 2, r"3 audio token\(s\) in 1 run\(s\) and there are 2 recording\(s\)"),
        ([1, 2, 3, 4], 1, r"0 audio token\(s\) in 0 run\(s\) and there are 1 recording\(s\)"),
    ],
)
def test_tokens_that_match_no_recordings_raise_with_both_counts(row, num_recordings, message):
    with pytest.raises(ValueError, match=message):
        find_audio_runs(torch.tensor([row]) == AUDIO, num_recordings)


def test_runs_of_another_length_raise_with_both_lengths():
    with pytest.raises(ValueError, match=r"\[2, 3\] audio tokens .* \[2, 4\] embeddings"):
        merge([[AUDIO, AUDIO, 1, AUDIO, AUDIO, AUDIO]], [[1] * 6], [2, 4])


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_hidden_states_line_up_with_tokens(padding_side):
    merged, _ = merge(
        [[1, AUDIO, 2, 3, 4], [5, AUDIO, 6, PAD, PAD]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [3, 2], padding_side
    )
    first, second = merged.at_tokens(merged.inputs_embeds)[..., 0].tolist()
    # An audio token has the state at the end of its recording.
    assert first == [1, 102, 2, 3, 4]
    assert second[:3] == [5, 104, 6]
    labels = torch.tensor([[-100, 7, -100, 3, 4], [-100, -100, 6, 7, 7]])
    # Labels over audio and padding, here 7, are ignored.
    assert merged.mask_labels(labels).tolist() == [[-100, -100, -100, 3, 4], [-100, -100, 6, -100, -100]]


def test_a_recording_without_embeddings_has_the_hidden_states_of_the_token_before_it():
    merged, _ = merge([[1, AUDIO, 2]], [[1, 1, 1]], [0])
    assert merged.at_tokens(merged.inputs_embeds)[..., 0].tolist() == [[1, 1, 2]]


@pytest.mark.parametrize("rows", [[[1, AUDIO, 2]], [[1, AUDIO, AUDIO, AUDIO, 2]]])
def test_gradients_reach_every_audio_embedding_once(rows):
    merged, audio_embeds = merge(rows, [[1] * len(rows[0])], [3])
    merged.inputs_embeds.sum().backward()
    assert audio_embeds.grad.tolist() == [[1.0, 1.0]] * 3


def test_audio_takes_the_dtype_of_the_text():
    runs = find_audio_runs(torch.tensor([[1, AUDIO]]) == AUDIO, 1)
    merged = merge_audio(
        torch.ones(1, 2, 4).bfloat16(), torch.ones(1, 2), runs, torch.ones(3, 4), torch.tensor([3]), "right"
    )
    assert merged.inputs_embeds.dtype == torch.bfloat16
    assert merged.attention_mask.dtype == torch.long
