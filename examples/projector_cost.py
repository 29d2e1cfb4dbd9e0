"""
Prints the parameters and operations of all projector types, and of projectors without experts of equal size.

    python examples/projector_cost.py                     # Whisper-large-v3 and Qwen2.5-7B
    python examples/projector_cost.py --model CHECKPOINT --tokens-per-second 2.7
"""

import argparse

from rich.console import Console
from rich.table import Table

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.evaluation.projector_cost import match_parameters, projector_cost
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES


def with_projector(config: LlmAsrConfig, projector_config: LlmAsrProjectorConfig) -> LlmAsrConfig:
    """Replace the projector of `config`."""
    return LlmAsrConfig(
        audio_config=config.audio_config,
        text_config=config.text_config,
        projector_config=projector_config,
        audio_frame_rate=config.audio_frame_rate,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub id of a checkpoint with the wanted sizes.")
    parser.add_argument("--tokens-per-second", type=float, default=4.0, help="Embeddings per second from CIF and CTC.")
    args = parser.parse_args()
    if args.model is None:
        config = LlmAsrConfig(
            audio_config={"model_type": "whisper", "d_model": 1280},
            text_config={"model_type": "qwen2", "hidden_size": 3584},
        )
    else:
        config = LlmAsrConfig.from_pretrained(args.model)

    sizes = config.projector_config.to_dict()
    kept = ("hidden_size", "intermediate_size", "num_experts", "num_experts_per_tok", "expert_hidden_size")
    kept += ("num_shared_experts", "router_type", "router_hidden_size", "routing_level", "merge")
    kept += tuple(name for name in sizes if name.startswith(("stack_", "qformer_")))
    rows = {}
    for projector_type in PROJECTOR_TYPES:
        options = {name: sizes[name] for name in kept if sizes[name] is not None}
        rows[projector_type] = LlmAsrProjectorConfig(projector_type=projector_type, **options)
    pairs = [
        ("conv", "moe"),
        ("conv", "moe_cif"),
        ("cif", "moe_cif"),
        ("stack", "moe_stack"),
        ("qformer", "moe_qformer"),
    ]
    for plain, reference in (*pairs, ("ctc", "moe_ctc")):
        for parameters in ("total", "active"):
            matched = match_parameters(plain, with_projector(config, rows[reference]), parameters)
            rows[f"{plain}, {parameters} as {reference}: intermediate_size {matched.intermediate_size}"] = matched
    table = Table("projector", "total parameters", "active parameters", "MFLOP per second of audio")
    for name, projector_config in rows.items():
        cost = projector_cost(with_projector(config, projector_config), args.tokens_per_second)
        table.add_row(
            name, f"{cost.total_parameters:,}", f"{cost.active_parameters:,}", f"{cost.flops_per_second / 1e6:,.0f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
