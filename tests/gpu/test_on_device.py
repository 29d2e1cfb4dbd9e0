"""
The model on a device and in a precision: `LLM_ASR_TEST_DEVICE=cuda pytest tests/gpu`. Without the variable, the CPU.

The results are compared with those of the CPU in float32.
"""

import copy
import os
from importlib.util import find_spec

import pytest
import torch
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling.cif import integrate_and_fire


DEVICE = torch.device(os.environ.get("LLM_ASR_TEST_DEVICE", "cpu"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Largest error of logits, relative to their norm.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
TRANSCRIPTS = ["one", "uno dos tres", "two three"]
GREEDY = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def pair(parts):
    def build(projector_type="moe_cif", **options):
        if "cif" in projector_type:
            options = {"draft_head": True, **options}
        model, processor = compose(parts, projector_type, **options)
        return model.eval(), processor

    return build


def relative_error(found, expected):
    found = found.float().cpu()
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projector_type", ["conv", "moe", "cif", "moe_cif", "stack", "moe_qformer"])
@torch.no_grad()
def test_logits_are_those_of_the_cpu(pair, recordings, projector_type, dtype):
    model, processor = pair(projector_type)
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS)
    expected = model(**batch)
    found = model.to(DEVICE, dtype)(**batch.to(DEVICE))
    assert found.logits.dtype == dtype
    is_target = batch["labels"].cpu() != -100
    assert relative_error(found.logits.cpu()[is_target], expected.logits[is_target]) < TOLERANCE[dtype]
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=TOLERANCE[dtype])
    if "cif" in projector_type:
        # As many embeddings as tokens, in every precision.
        assert found.audio_lengths.tolist() == batch["target_lengths"].tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_training_lowers_the_loss(pair, recordings, projector_type, dtype):
    model, processor = pair(projector_type, freeze_text=False)
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS).to(DEVICE)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16 and DEVICE.type == "cuda")
    losses = []
    for _ in range(8):
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(each.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@torch.no_grad()
def test_attention(pair, recordings, tmp_path, implementation):
    dtype = torch.float32
    if implementation == "flash_attention_2":
        if DEVICE.type != "cuda" or find_spec("flash_attn") is None:
            pytest.skip("needs CUDA and flash-attn")
        dtype = torch.bfloat16
    model, processor = pair()
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation, dtype=dtype)
    logits = loaded.to(DEVICE).eval()(**batch.to(DEVICE)).logits.cpu()
    is_target = batch["labels"].cpu() != -100
    assert relative_error(logits[is_target], expected[is_target]) < TOLERANCE[dtype]


@torch.no_grad()
def test_tokens_with_drafts_and_caches_are_those_of_greedy_decoding(pair, recordings):
    model, processor = pair()
    model.to(DEVICE)
    for recording in recordings:
        inputs = processor.apply_transcription_request(recording).to(DEVICE)
        greedy = model.generate(**inputs, **GREEDY, use_draft=False)
        assert torch.equal(model.generate(**inputs, **GREEDY, use_draft=True), greedy)
    batch = processor.apply_transcription_request(recordings).to(DEVICE)
    greedy = model.generate(**batch, **GREEDY, use_draft=False)
    static = model.generate(**batch, **GREEDY, use_draft=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, greedy)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@torch.no_grad()
def test_a_recording_is_the_same_alone_and_in_a_batch(pair, recordings, dtype):
    model, processor = pair()
    model.to(DEVICE, dtype)
    batch = model.get_audio_features(**audio_of(processor, recordings))
    rows = batch.pooler_output.split(batch.audio_lengths.tolist())
    for recording, row in zip(recordings, rows, strict=True):
        alone = model.get_audio_features(**audio_of(processor, [recording])).pooler_output
        assert len(alone) == len(row)
        assert relative_error(row, alone.float().cpu()) < (1e-4 if dtype == torch.float32 else 0.05)


def audio_of(processor, recordings):
    return processor(audio=recordings).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cif_fires_as_many_embeddings_as_it_is_told(dtype):
    torch.manual_seed(0)
    hidden_states, alphas = torch.randn(16, 300, 32, device=DEVICE), torch.rand(16, 300, device=DEVICE)
    targets = torch.randint(1, 200, (16,), device=DEVICE)
    scaled = alphas * (targets / alphas.sum(-1))[:, None]
    exact = integrate_and_fire(hidden_states.double().cpu(), scaled.double().cpu(), target_lengths=targets.cpu())
    fired = integrate_and_fire(hidden_states.to(dtype), scaled, target_lengths=targets)
    assert fired.lengths.tolist() == targets.tolist()
    assert relative_error(fired.embeds, exact.embeds.float()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_equal_those_of_the_cpu(pair, dtype):
    model, _ = pair("moe")
    moe = model.model.projector.moe
    frames = torch.randn(203, moe.router.weight.shape[1])
    lengths = torch.tensor([103, 100])
    expected = moe(frames, lengths)[0]
    rows = frames.to(DEVICE, dtype).requires_grad_()
    found = copy.deepcopy(moe).to(DEVICE, dtype)(rows, lengths.to(DEVICE))[0]
    # A frame between two experts may change its expert in half precision.
    same = (found.float().cpu() - expected).norm(dim=-1) < 0.1 * expected.norm(dim=-1)
    assert same.float().mean() > (0.999 if dtype == torch.float32 else 0.9)
    found.sum().backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@torch.no_grad()
def test_a_compiled_projector_gives_the_same(pair, recordings, dtype):
    model, processor = pair("moe")
    model.to(DEVICE, dtype)
    states, mask = model.model.get_audio_hidden_states(**audio_of(processor, recordings))
    expected = model.model.projector(states, mask).embeds
    # On the CPU the compiler of C++ may be missing.
    compiled = torch.compile(model.model.projector, backend="inductor" if DEVICE.type == "cuda" else "aot_eager")
    assert relative_error(compiled(states, mask).embeds, expected.float().cpu()) < TOLERANCE[dtype]
