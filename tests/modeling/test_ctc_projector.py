"""CTC: its loss against a sum over all alignments, merged frames against a loop, and models with a CTC head."""

import itertools

import pytest
import torch
from model_batches import GREEDY, training_batch
from tiny_models import compose, pad_recordings

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling import ctc
from llm_asr.modeling.ctc import CtcHead, collapse_labels, ctc_loss, merge_runs


BLANK = 3


def random_labels(lengths):
    return torch.randint(BLANK + 1, (sum(lengths),))


def runs_by_hand(frames, labels):
    """Means of runs, one frame after the other."""
    means, run = [], []
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        run.append(frame)
        if index + 1 == len(labels) or labels[index + 1] != label:
            if label != BLANK:
                means.append(torch.stack(run).mean(0))
            run = []
    return means


@pytest.mark.parametrize("lengths", [(5, 1, 12), (0, 7, 0), (1,), (40, 40)])
def test_runs_of_equal_labels_are_averaged(lengths):
    frames = torch.randn(sum(lengths), 6, dtype=torch.float64)
    labels = random_labels(lengths)
    expected = [
        runs_by_hand(rows, row_labels.tolist())
        for rows, row_labels in zip(frames.split(lengths), labels.split(lengths), strict=True)
    ]
    means, num_runs = merge_runs(frames, labels, torch.tensor(lengths), BLANK)
    assert num_runs.tolist() == [len(row) for row in expected]
    torch.testing.assert_close(means, torch.stack(list(itertools.chain(*expected))), rtol=1e-12, atol=1e-12)


def test_a_run_ends_with_its_recording():
    frames = torch.arange(4.0)[:, None]
    means, num_runs = merge_runs(frames, torch.tensor([1, 1, 1, 1]), torch.tensor([3, 1]), BLANK)
    assert (means.flatten().tolist(), num_runs.tolist()) == ([1.0, 3.0], [1, 1])


def test_blanks_are_dropped_and_separate_equal_labels():
    frames = torch.arange(6.0)[:, None].requires_grad_()
    means, num_runs = merge_runs(frames, torch.tensor([BLANK, 2, BLANK, 2, 2, BLANK]), torch.tensor([6]), BLANK)
    assert (means.flatten().tolist(), num_runs.tolist()) == ([1.0, 3.5], [2])
    means.sum().backward()
    assert frames.grad.flatten().tolist() == [0, 1, 0, 0.5, 0.5, 0]
    means, num_runs = merge_runs(frames, torch.full((6,), BLANK), torch.tensor([4, 2]), BLANK)
    assert (means.shape, num_runs.tolist()) == ((0, 1), [0, 0])


def test_greedy_transcripts():
    labels = torch.tensor([[1, 1, BLANK, 1, 2, 2], [BLANK, BLANK, 0, -100, -100, -100], [BLANK, *[-100] * 5]])
    assert [row.tolist() for row in collapse_labels(labels, BLANK)] == [[1, 1, 2], [0], []]


def sum_over_alignments(logits, tokens):
    """`-log` of the sum of the probabilities of all label sequences that collapse to `tokens`."""
    probabilities = logits.softmax(-1)
    total = logits.new_zeros(())
    for labels in itertools.product(range(BLANK + 1), repeat=len(logits)):
        if collapse_labels(torch.tensor([labels]), BLANK)[0].tolist() == tokens:
            total = total + probabilities[range(len(labels)), list(labels)].prod()
    return -total.log()


def test_the_loss_is_the_sum_over_all_alignments():
    transcripts = [[0, 1], [2, 2], [], [1]]
    lengths = torch.tensor([4, 5, 3, 1])
    logits = torch.randn(13, BLANK + 1, dtype=torch.float64, requires_grad=True)
    expected = sum(map(sum_over_alignments, logits.split(lengths.tolist()), transcripts))
    (gradient,) = torch.autograd.grad(expected, logits)
    tokens, target_lengths = (
        torch.tensor(list(itertools.chain(*transcripts))),
        torch.tensor([len(row) for row in transcripts]),
    )
    loss, skipped = ctc_loss(logits, lengths, tokens, target_lengths)
    assert skipped == 0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


def test_impossible_and_unknown_transcripts_add_nothing_and_the_first_are_counted():
    lengths = torch.tensor([2, 2, 3, 2, 4])
    logits = torch.randn(13, BLANK + 1, dtype=torch.float64, requires_grad=True)
    # Three tokens in two frames, two equal ones in two, an unknown transcript, and two that fit.
    tokens, target_lengths = torch.tensor([0, 1, 2, 1, 1, 0, 1, 2, 2]), torch.tensor([3, 2, -1, 2, 2])
    loss, skipped = ctc_loss(logits, lengths, tokens, target_lengths)
    assert skipped == 2
    expected = sum_over_alignments(logits[7:9], [0, 1]) + sum_over_alignments(logits[9:], [2, 2])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:7].any()
    assert gradient[7:].all()
    loss, skipped = ctc_loss(logits, lengths, torch.tensor([0, 0]), torch.tensor([-1, 2, -1, -1, -1]))
    assert (loss.item(), skipped.item()) == (0, 1)
    loss.backward()
    assert not logits.grad.any()


def test_labels_in_pieces_are_those_of_all_scores(monkeypatch):
    monkeypatch.setattr(ctc, "FRAMES_AT_ONCE", 4)
    head = CtcHead(6, 5).double()
    embeddings = torch.randn(9, 5, dtype=torch.float64)
    frames = torch.randn(11, 6, dtype=torch.float64)
    scores = head(frames)
    expected = torch.cat([head.proj(frames) @ embeddings.T, head.blank(frames)], dim=-1)
    torch.testing.assert_close(scores.logits(embeddings), expected)
    assert torch.equal(scores.labels(embeddings), expected.argmax(-1))
    assert not scores.labels(embeddings).requires_grad


def make(parts, projector_type="ctc", **kwargs):
    model, processor = compose(parts, projector_type, **kwargs)
    return model.eval(), processor


def features_of(batch):
    return {name: batch[name] for name in ("input_features", "input_features_mask")}


@pytest.mark.parametrize("projector_type", ["ctc", "moe_ctc"])
def test_frames_are_merged_by_the_labels_of_the_head(parts, projector_type):
    model, _ = make(parts, projector_type)
    projector, embeddings = model.model.projector.double(), model.get_input_embeddings().weight.double()
    frames = [torch.randn(length, 32, dtype=torch.float64) for length in (30, 3, 17)]
    output = projector(*pad_recordings(frames, padding_value=float("nan")), None, embeddings)
    for row, recording in enumerate(frames):
        hidden = recording.T[None]
        for conv in projector.downsampler.convs:
            hidden = torch.nn.functional.gelu(conv(hidden))
        hidden = hidden[0].T
        scores = torch.cat([projector.ctc_head.proj(hidden) @ embeddings.T, projector.ctc_head.blank(hidden)], -1)
        labels = scores.argmax(-1)
        means, num_runs = merge_runs(hidden, labels, torch.tensor([len(labels)]), len(embeddings))
        assert torch.equal(output.ctc_labels[row][: len(labels)], labels)
        assert (output.ctc_labels[row][len(labels) :] == -100).all()
        assert output.lengths[row] == num_runs
        expected = projector.project(means, num_runs)[0]
        torch.testing.assert_close(output.embeds.split(output.lengths.tolist())[row], expected)


@pytest.mark.parametrize("text", ["qwen2", "qwen2-tied", "llama"])
def test_the_loss_of_a_model_is_per_label(parts, recordings, text):
    model, processor = make(parts, text=text, ctc_loss_coef=0.3)
    batch = processor.apply_transcription_request(
        recordings, language=["en", "es", None], transcription=["one two", "", "tres"], identify_language=[True, True, False]
    )  # fmt: skip
    outputs = model(**batch)
    audio = model.get_audio_features(**features_of(batch))
    logits = audio.ctc_scores.logits(model.get_input_embeddings().weight).double()
    tokens = torch.tensor([token for text in ("one two", "tres") for token in processor._tokenize(text)])
    lengths = (audio.ctc_labels != -100).sum(-1)
    expected, skipped = ctc_loss(logits, lengths, tokens, batch["target_lengths"])
    assert outputs.ctc_skipped == skipped == 0
    num_labels = (batch["labels"] != -100).sum()
    torch.testing.assert_close(outputs.ctc_loss, (expected / num_labels).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.loss, outputs.lm_loss + 0.3 * outputs.ctc_loss)
    outputs.loss.backward()
    head = model.model.projector.ctc_head
    assert head.proj.weight.grad.any()
    assert head.blank.weight.grad.any()


def test_translations_and_impossible_transcripts(parts, recordings):
    model, processor = make(parts)
    batch = processor.apply_transcription_request(
        recordings,
        transcription=["uno dos tres", "cuatro " * 60, None],
        translation=["one two three", None, "five"],
        task=["translate", "transcribe", "translate"],
        target_language=["en", None, "en"],
    )
    outputs = model(**batch)
    assert (outputs.ctc_loss.item(), outputs.ctc_skipped.item()) == (0, 1)
    assert outputs.lm_loss > 0
    del batch["target_lengths"]
    torch.testing.assert_close(model(**batch).loss, outputs.loss)


def test_several_recordings_in_a_row_cannot_be_trained(parts, recordings):
    model, processor = make(parts)
    text = [processor.audio_token + "and" + processor.audio_token]
    batch = processor(text=text, audio=recordings[:2], transcription=["one two"])
    batch["target_lengths"] = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="one recording a row, and there are 2 recordings in 1 rows"):
        model(**batch)


@pytest.mark.parametrize(
    ("projector_type", "options"),
    [
        ("ctc", {}),
        ("moe_ctc", {"num_shared_experts": 1}),
        ("moe_ctc", {"routing_level": "utterance", "merge": "parameters"}),
    ],
)
def test_recordings_of_blanks_have_no_embeddings(parts, recordings, projector_type, options):
    model, processor = make(parts, projector_type, **options)
    torch.nn.init.constant_(model.model.projector.ctc_head.blank.bias, 1e4)
    batch = training_batch(processor, recordings)
    outputs = model.train()(**batch)
    assert outputs.audio_lengths.tolist() == [0, 0, 0]
    assert outputs.audio_embeds.shape == (0, 40)
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.model.projector.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.eval()
    assert [len(tokens) for tokens in model.transcribe_ctc(**features_of(batch))] == [0, 0, 0]
    request = processor.apply_transcription_request(recordings)
    assert model.generate(**request, **GREEDY).shape == (3, GREEDY["max_new_tokens"])


def test_greedy_transcripts_of_a_model(parts, recordings, tmp_path):
    model, processor = make(parts)
    request = processor.apply_transcription_request(recordings)
    tokens = model.transcribe_ctc(**features_of(request))
    audio = model.get_audio_features(**features_of(request))
    assert [len(row) for row in tokens] == audio.audio_lengths.tolist()
    assert sum(map(len, tokens)) > 6
    assert len(processor.batch_decode(tokens)) == 3
    for recording, row in zip(recordings, tokens, strict=True):
        alone = processor.apply_transcription_request(recording)
        assert torch.equal(model.transcribe_ctc(**features_of(alone))[0], row)
    # The language model verifies the transcript, and its own tokens stay the same.
    first = processor.apply_transcription_request(recordings[0])
    options = {"do_sample": False, "max_new_tokens": 6}
    drafted = model.generate(**first, draft_ids=tokens[0], **options)
    assert torch.equal(drafted, model.generate(**first, **options))
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    for row, again in zip(tokens, loaded.model.transcribe_ctc(**features_of(request)), strict=True):
        assert torch.equal(again, row)


def test_models_without_a_ctc_head_and_projectors_without_embeddings_are_refused(parts, recordings):
    model, processor = make(parts, "conv")
    with pytest.raises(ValueError, match="`transcribe_ctc` needs a CTC head, and `projector_type` is 'conv'"):
        model.transcribe_ctc(**features_of(processor.apply_transcription_request(recordings)))
    model, _ = make(parts)
    with pytest.raises(ValueError, match="`token_embeddings` must be passed"):
        model.model.projector(torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool))


def test_offloaded_embeddings_are_refused(parts, recordings):
    model, processor = make(parts)
    model.get_input_embeddings().to("meta")
    with pytest.raises(ValueError, match="The input embeddings are offloaded"):
        model.transcribe_ctc(**features_of(processor.apply_transcription_request(recordings)))


def test_streams_are_refused(parts):
    model, _ = make(parts, encoder_attention="chunked", encoder_chunk_s=0.4, encoder_left_context_s=0.4)
    with pytest.raises(ValueError, match="CtcProjector reduces frames by the whole recording"):
        model.model.open_audio_stream()
