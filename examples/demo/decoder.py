"""
Creates a small language model for the demo, with random weights and a tokenizer that is trained on the transcripts.

    python examples/demo/decoder.py --dataset data/demo/train.jsonl --output data/demo/decoder
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from llm_asr.processing.processing_llm_asr import LANGUAGE_CODE_TO_NAME
from llm_asr.processing.transcripts_llm_asr import LANGUAGE_END


# The model only transcribes, so the template joins the contents without roles.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def train_tokenizer(dataset: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on transcripts and on transcription requests."""
    rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
    requests = ["Transcribe the speech.", "Name the language and transcribe the speech."]
    for code in sorted({row["language"] for row in rows if row["language"]}):
        name = LANGUAGE_CODE_TO_NAME[code]
        requests += [f"Transcribe the speech in {name}.", f"{name}{LANGUAGE_END}"]
        if any(row.get("translation") for row in rows):
            requests += [f"Translate the speech into {name}."]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|end|>", "<|audio|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Repeat the requests, so that each is encoded in a few tokens.
    tokenizer.train_from_iterator([row["text"] for row in rows] + requests * len(rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|audio|>"],
        chat_template=CHAT_TEMPLATE,
    )


def build_decoder(dataset: Path, output: Path, vocab_size: int = 512, seed: int = 0) -> None:
    """Write the tokenizer and a Qwen2 model with about four million random parameters to `output`."""
    set_seed(seed)
    tokenizer = train_tokenizer(dataset, vocab_size)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"{output}: {model.num_parameters() / 1e6:.1f} M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    build_decoder(args.dataset, args.output, args.vocab_size, args.seed)
