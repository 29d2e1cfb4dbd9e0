"""Batches with a limit in padded seconds."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.duration_batches import DurationBatchSampler, read_durations
from llm_asr.training.trainer import LlmAsrTrainer


def durations(size=500, seed=0):
    return np.random.default_rng(seed).lognormal(np.log(5), 0.6, size).clip(0.5, 30.0)


def padded_seconds(batch, seconds):
    return len(batch) * max(seconds[row] for row in batch)


@pytest.mark.parametrize("max_seconds", [30.0, 100.0])
def test_an_epoch_has_every_row_once_and_no_batch_is_too_large(max_seconds):
    seconds = durations()
    sampler = DurationBatchSampler(seconds, max_seconds)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(seconds)))
    assert max(padded_seconds(batch, seconds) for batch in batches) <= max_seconds


def test_little_is_padded_and_batches_are_full():
    seconds = durations(5000)
    batches = list(DurationBatchSampler(seconds, 100.0))
    padded = sum(padded_seconds(batch, seconds) for batch in batches)
    assert seconds.sum() / padded > 0.9
    assert padded / (100.0 * len(batches)) > 0.8


def test_epochs_shuffle_recordings_and_batches_and_can_be_repeated():
    seconds = durations()
    sampler = DurationBatchSampler(seconds, 60.0, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(first) == len(second)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    again = DurationBatchSampler(seconds, 60.0, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(DurationBatchSampler(seconds, 60.0, seed=4)) != first


def test_short_recordings_can_be_bounded_in_number():
    batches = list(DurationBatchSampler([0.1] * 100, 100.0, max_batch_size=16))
    assert Counter(map(len, batches)) == {16: 6, 4: 1}


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_all_processes_take_the_same_number_of_steps(drop_last, num_processes):
    seconds = durations(101)
    sampler = DurationBatchSampler(seconds, 40.0, drop_last=drop_last)
    assert len(sampler) % num_processes
    shards = [BatchSamplerShard(sampler, num_processes, index) for index in range(num_processes)]
    dealt = [list(shard) for shard in shards]
    assert len({len(batches) for batches in dealt}) == 1
    assert len(dealt[0]) == len(shards[0])
    rows = Counter(row for batches in dealt for batch in batches for row in batch)
    if drop_last:
        assert max(rows.values()) == 1
    else:
        assert set(rows) == set(range(101))
        assert max(rows.values()) == 2


@pytest.mark.parametrize(
    ("seconds", "options", "message"),
    [
        ([1.0, None], {}, "row 1 has nan"),
        ([1.0, 0.0], {}, "row 1 has 0.0"),
        ([1.0, float("inf")], {}, "row 1 has inf"),
        ([1.0, 11.0], {}, "Row 1 lasts 11.00 s"),
        ([], {}, r"shape \(num_rows,\)"),
        ([1.0], {"max_seconds": 0}, "`max_seconds` must be a positive number, got 0"),
        ([1.0], {"max_batch_size": 0}, "`max_batch_size` must be positive"),
        ([1.0], {"bucket_width": 0.0}, "`bucket_width` must be a positive share"),
        ([1.0], {"seed": -1}, "`seed` must not be negative"),
    ],
)
def test_bad_arguments_are_refused(seconds, options, message):
    with pytest.raises(ValueError, match=message):
        DurationBatchSampler(seconds, **{"max_seconds": 10.0, **options})


def test_durations_are_read_from_the_column_or_from_the_recordings(tmp_path):
    dataset = load_asr_dataset(str(write_speech_dataset(tmp_path)))
    # A word in the recordings lasts 0.3 s.
    expected = [0.3 * len(text.split()) for text in dataset["text"]]
    assert read_durations(dataset) == pytest.approx(expected)
    told = [None, 7.0] + [None] * (len(dataset) - 2)
    assert read_durations(dataset.add_column("duration", told)) == pytest.approx([expected[0], 7.0, *expected[2:]])
    assert read_durations(Dataset.from_list([{"audio": {"bytes": b"no audio", "path": None}}])) == [None]


class Recorder(LlmAsrDataCollator):
    """Records the rows of each batch."""

    def __call__(self, rows):
        self.processor.seen_rows.append([row["row"] for row in rows])
        return super().__call__(rows)


def make_trainer(parts, dataset, folder, **options):
    model, processor = compose(parts, "moe_cif")
    processor.seen_rows = []
    options = {
        "max_batch_seconds": 1.3,
        "num_train_epochs": 2,
        "learning_rate": 3e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 7,
        **options,
    }
    trainer = LlmAsrTrainer(
        model=model,
        args=LlmAsrTrainingArguments(str(folder), **options),
        data_collator=Recorder(processor),
        train_dataset=dataset,
    )
    return trainer, processor.seen_rows


@pytest.fixture
def dataset(tmp_path):
    return load_asr_dataset(str(write_speech_dataset(tmp_path / "speech")))


def test_the_trainer_uses_duration_batches_and_resumes_within_an_epoch(parts, dataset, tmp_path):
    seconds = read_durations(dataset)
    whole, seen = make_trainer(parts, dataset, tmp_path / "whole")
    whole.train()
    steps = len(seen) // 2
    # The 8 recordings last 0.3 to 0.9 s.
    assert steps == whole.state.max_steps // 2 == 5
    for epoch in (seen[:steps], seen[steps:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(8))
    assert seen[:steps] != seen[steps:]
    assert max(padded_seconds(batch, seconds) for batch in seen) <= 1.3

    resumed, seen_after = make_trainer(parts, dataset, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert seen_after == seen[7:]
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_streams_and_other_strategies_are_refused(parts, dataset, tmp_path):
    trainer, _ = make_trainer(parts, dataset.to_iterable_dataset(), tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="`max_batch_seconds` needs a dataset that does not stream"):
        trainer.train()
    with pytest.raises(ValueError, match="either `max_batch_seconds` or `train_sampling_strategy`"):
        LlmAsrTrainingArguments(str(tmp_path), max_batch_seconds=9.0, train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="`max_batch_seconds` must be positive, got -1"):
        LlmAsrTrainingArguments(str(tmp_path), max_batch_seconds=-1.0)
