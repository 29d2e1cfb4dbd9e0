"""Common fixtures: a Hub on loopback, and a model in all forms."""

import pytest
from hub_client import loopback_hub
from same_models import TEXTS, add_trained_lora
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.publishing.checkpoint_forms import FORMS, save_checkpoint


@pytest.fixture
def hub(tmp_path):
    with loopback_hub(tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """A model in each form, and the base checkpoint of its adapter, by language model."""
    root = tmp_path_factory.mktemp("forms")
    folders = {}
    for text in TEXTS:
        model, processor = compose(parts, "moe_cif", text=text, draft_head=True)
        save_checkpoint(model, processor, root / text / "base", form="slim")
        model = add_trained_lora(LlmAsrForConditionalGeneration.from_pretrained(root / text / "base"))
        for form in FORMS:
            save_checkpoint(model, processor, root / text / form, form=form)
        folders[text] = model, processor, root / text
    return folders
