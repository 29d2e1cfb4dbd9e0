"""Each family of causal language models: heads, scales, soft caps, windows, experts and recurrent states."""

import asyncio
import copy
import functools
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from model_batches import GREEDY, KERNEL_NOISE, TRANSCRIPTS
from tiny_language_models import LANGUAGE_MODELS, REFUSED, save_tiny_language_model
from tiny_models import compose
from transformers import AutoModelForCausalLM, set_seed
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.modeling.projector_llm_asr import ProjectorOutput
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.export import export_for_serving, extract_language_model
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.publishing.remote_code import write_remote_code
from llm_asr.serving.engine import Decoding
from llm_asr.serving.transformers_engine import TransformersEngine
from llm_asr.training.lora import add_lora


DOCUMENTATION = Path(__file__).parents[2] / "docs/language-models.md"
every_family = pytest.mark.parametrize("name", LANGUAGE_MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny checkpoints, by family."""

    @functools.cache
    def save(name):
        folder = str(tmp_path_factory.mktemp(name))
        set_seed(0)
        save_tiny_language_model(name, folder)
        return folder

    return save


@pytest.fixture(scope="module")
def composed(parts, folders):
    """Composes a model of each family once; for tests that change nothing in it."""

    @functools.cache
    def make(name):
        return compose({**parts, name: folders(name)}, "moe_cif", text=name, draft_head=True, freeze_text=False)

    return make


def random_tokens(processor):
    return torch.randint(3, len(processor.tokenizer) - 1, (2, 12))


@every_family
def test_logits_on_text_equal_those_of_the_original(composed, folders, name):
    model, processor = composed(name)
    original = AutoModelForCausalLM.from_pretrained(folders(name))
    input_ids = random_tokens(processor)
    expected = original(input_ids=input_ids).logits
    # The model has rows for new tokens, such as that for audio.
    found = model(input_ids=input_ids).logits[..., : expected.shape[-1]]
    assert torch.equal(found, expected)
    # In prompts with padding on the left, too.
    mask = torch.ones_like(input_ids)
    mask[1, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
    expected = original(**padded).logits[mask.bool()]
    torch.testing.assert_close(model(**padded).logits[mask.bool()][:, : expected.shape[-1]], expected, **KERNEL_NOISE)


@every_family
def test_losses_without_logits_are_the_same(composed, recordings, name):
    model, processor = composed(name)
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS)
    expected = model(**batch)
    assert expected.logits.shape[:2] == batch["input_ids"].shape
    found = model(**batch, skip_logits=True)
    assert found.logits is None
    for loss in ("loss", "lm_loss", "draft_loss"):
        torch.testing.assert_close(found[loss], expected[loss])
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    by_hand = torch.nn.functional.cross_entropy(expected.logits.flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(expected.lm_loss, by_hand)


@every_family
@pytest.mark.parametrize("lora", [False, True])
def test_a_training_step(composed, recordings, name, lora):
    model, processor = copy.deepcopy(composed(name))
    if lora:
        model = add_lora(model, rank=2, dropout=0.0)
    else:
        model.freeze_audio_tower()
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert any("language_model" in key for key in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model.train()(**batch).loss
        loss.backward()
        assert all(value.grad is None or value.grad.isfinite().all() for value in trained.values())
        assert any(value.grad is not None and value.grad.any() for key, value in trained.items() if "language" in key)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_family
def test_tokens_are_the_same_alone_in_a_batch_and_reloaded(composed, recordings, tmp_path, name):
    model, processor = composed(name)
    request = processor.apply_transcription_request(recordings, prompt=["five", None, "one two three four"])
    greedy = model.generate(**request, **GREEDY)
    for row, (recording, prompt) in enumerate(zip(recordings, ["five", None, "one two three four"], strict=True)):
        alone = processor.apply_transcription_request([recording], prompt=[prompt])
        assert torch.equal(model.generate(**alone, **GREEDY)[0], greedy[row])
    beams = model.generate(**request, **GREEDY, num_beams=2)
    for form in ("full", "slim"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
        loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        assert torch.equal(loaded.generate(**request, **GREEDY), greedy)
    assert torch.equal(loaded.generate(**request, **GREEDY, num_beams=2), beams)
    assert LlmAsrProcessor.from_pretrained(tmp_path / "slim").audio_token_id == processor.audio_token_id


@every_family
def test_drafts_and_confidence(composed, recordings, name):
    model, processor = composed(name)
    request = processor.apply_transcription_request(recordings[:1])
    options = {**GREEDY, "use_draft": False, "return_dict_in_generate": True, "output_confidence": True}
    outputs = model.generate(**request, **options)
    drafted = model.generate(**request, **GREEDY, use_draft=True)
    assert torch.equal(drafted, outputs.sequences)
    drafted = model.generate(**request, **{**options, "use_draft": True})
    torch.testing.assert_close(drafted.avg_logprobs, outputs.avg_logprobs, **KERNEL_NOISE)
    # By teacher forcing, through `forward`.
    sequences = torch.cat([request["input_ids"], outputs.sequences], dim=1)
    forced = {**request, "input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
    logprobs = model(**forced).logits[:, -GREEDY["max_new_tokens"] - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(-1, outputs.sequences[..., None]).mean()
    torch.testing.assert_close(outputs.avg_logprobs[0], expected, **KERNEL_NOISE)


@every_family
def test_drafts_of_a_batch_do_not_change_the_tokens(composed, recordings, name):
    """Rejected tokens must not count in windows, rows of several lengths must not mix, and rows that end leave."""
    model, processor = composed(name)
    prompts = ["five", None, "one two three four", None]
    request = processor.apply_transcription_request([*recordings, recordings[0]], prompt=prompts)
    greedy = model.generate(**request, max_new_tokens=16, min_new_tokens=16, use_draft=False)
    ids = greedy.tolist()
    # Right, wrong in the middle, one token too many and one too few.
    drafts = [ids[0], [*ids[1][:4], 7, *ids[1][5:]], [*ids[2][:9], 7, *ids[2][9:]], [*ids[3][:6], *ids[3][7:]]]
    request["draft_ids"] = [torch.tensor(draft) for draft in drafts]
    assert torch.equal(model.generate(**request, max_new_tokens=16, min_new_tokens=16), greedy)


@every_family
def test_the_exported_language_model_gives_the_same_logits(composed, name):
    model, processor = composed(name)
    exported = extract_language_model(model)
    input_ids = random_tokens(processor)
    assert torch.equal(exported(input_ids=input_ids).logits, model(input_ids=input_ids).logits)


async def continue_prompts(folder, prompts):
    engine = TransformersEngine(
        folder, "float32", torch.device("cpu"), batch_size=len(prompts), max_queued=len(prompts)
    )
    await engine.start()
    try:

        async def continue_one(prompt):
            return [
                index async for tokens in engine.generate(prompt, Decoding(temperature=0.0)) for index in tokens.ids
            ]

        return await asyncio.gather(*map(continue_one, prompts))
    finally:
        await engine.stop()


@every_family
def test_the_server_gives_the_same_tokens(composed, recordings, tmp_path, name):
    model, processor = composed(name)
    request = processor.apply_transcription_request(recordings)
    expected = model.generate(**request, max_new_tokens=GREEDY["max_new_tokens"])
    export_for_serving(model, processor, tmp_path / "exported")
    prompts = LlmAsrFrontEnd.from_pretrained(tmp_path / "exported/front_end")(**request)
    merged, _ = model.model.merge_audio_and_text(**request)
    for row, prompt in enumerate(prompts):
        # Some embeddings of tokens are scaled by buffers, which no checkpoint holds.
        expected_embeds = merged.inputs_embeds[row][merged.attention_mask[row].bool()]
        torch.testing.assert_close(prompt.inputs_embeds, expected_embeds, **KERNEL_NOISE)
        prompt.max_new_tokens = GREEDY["max_new_tokens"]
    if name in ("bamba", "falcon_h1"):
        with pytest.raises(ValueError, match=r"ForCausalLM, whose `generate` does not take `inputs_embeds`"):
            asyncio.run(continue_prompts(tmp_path / "exported/language_model", prompts))
        return
    served = asyncio.run(continue_prompts(tmp_path / "exported/language_model", prompts))
    for ids, row in zip(served, expected.tolist(), strict=True):
        assert ids == row[: len(ids)]
        assert all(token == processor.tokenizer.pad_token_id for token in row[len(ids) :])


@pytest.mark.parametrize("name", ["gemma2", "bamba"])
def test_remote_code_gives_the_same_logits(composed, recordings, tmp_path, name):
    model, processor = composed(name)
    save_checkpoint(model, processor, tmp_path / "published")
    write_remote_code(tmp_path / "published")
    remote_class = get_class_from_dynamic_module(
        "modeling_llm_asr.LlmAsrForConditionalGeneration", str(tmp_path / "published")
    )
    assert remote_class is not LlmAsrForConditionalGeneration
    loaded = remote_class.from_pretrained(tmp_path / "published", trust_remote_code=True)
    request = processor.apply_transcription_request(recordings)
    torch.testing.assert_close(loaded(**request).logits, model(**request).logits, **KERNEL_NOISE)


@every_family
def test_audio_embeddings_are_scaled_like_token_embeddings(composed, recordings, name):
    """A recording whose embeddings are those of words is read as these words are, whatever scales embeddings."""
    model, processor = copy.deepcopy(composed(name))
    request = processor.apply_transcription_request(recordings[:1])
    words = random_tokens(processor)[0]
    lengths = torch.tensor([len(words)])
    model.model.projector.forward = lambda *args: ProjectorOutput(model.get_input_embeddings()(words), lengths)
    place = int((request["input_ids"][0] == processor.audio_token_id).nonzero())
    before, behind = request["input_ids"][0, :place], request["input_ids"][0, place + 1 :]
    expected = model(input_ids=torch.cat([before, words, behind])[None]).logits[:, -1]
    torch.testing.assert_close(model(**request).logits[:, -1], expected)


@every_family
def test_the_head_compiles_as_one_graph_and_is_pickled(composed, name):
    model, _ = composed(name)
    hidden_states = torch.randn(2, 3, model.config.text_config.hidden_size)
    expected = model.get_logits(hidden_states)
    torch._dynamo.reset()
    compiled = torch.compile(model.get_logits, fullgraph=True, backend="eager")
    assert torch.equal(compiled(hidden_states), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model)).get_logits(hidden_states), expected)
    # Losses read packed rows.
    assert torch.equal(model.get_logits(hidden_states[1]), model.get_logits(hidden_states[1:])[0])


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head", "projector"]}, {"target_modules": ["lm_head"]}])
def test_a_head_under_an_adapter_is_trained(parts, folders, recordings, options):
    model, processor = compose({**parts, "phi": folders("phi")}, "conv", text="phi")
    batch = processor.apply_transcription_request(recordings, transcription=TRANSCRIPTS)
    expected = model(**batch).logits
    if "target_modules" in options:
        options = {**options, "exclude_modules": None}
    adapted = add_lora(model, rank=2, dropout=0.0, **options)
    torch.testing.assert_close(adapted(**batch).logits, expected)
    adapted.train()(**batch).loss.backward()
    trained = [value for key, value in adapted.named_parameters() if "lm_head" in key and value.requires_grad]
    assert any(value.grad is not None and value.grad.any() for value in trained)


def test_the_current_head_is_used_after_adapters_and_new_tokens(parts, folders, recordings):
    model, processor = compose({**parts, "granite": folders("granite")}, "conv", text="granite")
    request = processor.apply_transcription_request(recordings)
    expected = model(**request).logits
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    torch.testing.assert_close(model(**request).logits, 2 * expected)
    model.resize_token_embeddings(model.config.text_config.vocab_size + 3, mean_resizing=False)
    assert model(**request).logits.shape[-1] == expected.shape[-1] + 3
    torch.testing.assert_close(copy.deepcopy(model)(**request).logits[..., :-3], 2 * expected)


def test_the_documentation_names_the_families_that_are_tested():
    table = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", DOCUMENTATION.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {name for cell in table[2:] for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(LANGUAGE_MODELS)


def test_rounding_differences_of_experts_are_accepted(parts, folders, monkeypatch):
    """As on GPUs, where additions of experts' outputs are atomic."""
    forward = MixtralSparseMoeBlock.forward

    def add_in_another_order(self, hidden_states):
        output = forward(self, hidden_states)
        return output * (1 + 1e-6 * torch.randn_like(output))

    monkeypatch.setattr(MixtralSparseMoeBlock, "forward", add_in_another_order)
    model, _ = compose({**parts, "mixtral": folders("mixtral")}, "conv", text="mixtral")
    input_ids = torch.arange(4)[None]
    assert not torch.equal(model(input_ids=input_ids).logits, model(input_ids=input_ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_of_embeddings_close_to_one_is_refused(parts, tmp_path, dtype):
    save_tiny_language_model(
        "falcon_h1", str(tmp_path), **{**LANGUAGE_MODELS["falcon_h1"], "embedding_multiplier": 1.1}
    )
    with pytest.raises(ValueError, match="scales the embeddings of `input_ids`"):
        compose({**parts, "other": str(tmp_path)}, "conv", text="other", text_kwargs={"dtype": dtype})


def test_custom_code_is_refused(parts, folders, tmp_path):
    """A checkpoint with it could be saved, but not loaded."""
    folder = Path(shutil.copytree(folders("qwen2"), tmp_path / "custom"))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "custom", "auto_map": auto_map}))
    (folder / "custom.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class CustomConfig(Qwen2Config):\n    model_type = 'custom'\n"
        "class CustomForCausalLM(Qwen2ForCausalLM):\n    config_class = CustomConfig\n"
    )
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], folders("qwen2"))
    with pytest.raises(ValueError, match="is of type 'custom', which Transformers does not know"):
        LlmAsrForConditionalGeneration.from_audio_text_pretrained(
            parts["whisper"], str(folder), "conv", processor=processor, text_kwargs={"trust_remote_code": True}
        )


def test_a_dtype_that_overflows_is_refused(parts, tmp_path):
    save_tiny_language_model("granite", str(tmp_path), embedding_multiplier=1e6)
    with pytest.raises(ValueError, match=r"logits are not finite in torch.float16; .*`text_kwargs="):
        compose({**parts, "other": str(tmp_path)}, "conv", text="other", text_kwargs={"dtype": "float16"})


@pytest.mark.parametrize("name", REFUSED)
def test_unsuitable_language_models_are_refused(parts, tmp_path, name):
    message = {"mamba2": "keeps no key/value cache", "falcon_h1": "scales the embeddings of `input_ids`"}[name]
    save_tiny_language_model(name, str(tmp_path), **REFUSED[name])
    with pytest.raises(ValueError, match=f"`text` is a .*ForCausalLM.*{message}"):
        compose({**parts, "other": str(tmp_path)}, "conv", text="other")
