"""
Trains the demo with and without balancing of its experts, over several seeds, and reports how evenly they are used.

    QUICK=1 make demo
    python examples/demo/balance_experts.py --output docs/benchmarks/expert_balance.json

Each run takes a few minutes. Finished runs are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import yaml


EXAMPLES = Path(__file__).parents[1]
NO_LOSSES = {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}
# Options of each variant, in addition to the demo's recipe with eight experts.
VARIANTS = {
    "no balancing": NO_LOSSES,
    "load-balancing loss": {},
    "loss-free bias": {"router_aux_loss_coef": 0.0, "router_bias_update_rate": 0.001},
    "dense mixture, no balancing": {"num_experts_per_tok": 8, **NO_LOSSES},
    "dense mixture, load-balancing loss": {"num_experts_per_tok": 8},
    "merged parameters, no balancing": {
        "num_experts_per_tok": 8,
        "routing_level": "utterance",
        "merge": "parameters",
        **NO_LOSSES,
    },
    "merged parameters, load-balancing loss": {
        "num_experts_per_tok": 8,
        "routing_level": "utterance",
        "merge": "parameters",
    },
}


def run(variant: str, seed: int, args: argparse.Namespace) -> dict:
    """Train and evaluate one variant with one seed, unless its report exists."""
    folder = args.runs / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
    report = folder / "test.json"
    if not report.exists():
        recipe = yaml.safe_load((EXAMPLES / "demo/train.yaml").read_text())
        projector = {**recipe["projector"], "num_experts": 8, "expert_hidden_size": 128, **VARIANTS[variant]}
        recipe.update(
            text_model=str(args.data / "decoder"),
            train_dataset=str(args.data / "train.jsonl"),
            eval_dataset=None,
            eval_strategy="no",
            do_eval=False,
            projector=projector,
            num_train_epochs=args.epochs,
            output_dir=str(folder),
            seed=seed,
            disable_tqdm=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))
        test = str(args.data / "test.jsonl")
        for command in (
            ["train", str(folder / "recipe.json")],
            ["evaluate", "--model", str(folder), "--dataset", test, "--output", str(report)],
        ):
            with (folder / "log.txt").open("a") as log:
                subprocess.run(
                    [sys.executable, "-m", "llm_asr", *command],
                    check=True,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
                )
    found = json.loads(report.read_text())
    return {"usage": found["expert_usage"]["projector.moe"], "wer": found["error_rates"]["all"]["wer"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo-quick"), help="Folder with the data of compose.py."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/balance"), help="Folder for checkpoints and logs.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2, help="Number of concurrent runs.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run.")
    args = parser.parse_args()

    todo = [(variant, seed) for seed in args.seeds for variant in VARIANTS]
    with ThreadPoolExecutor(args.processes) as pool:
        found = list(pool.map(lambda task: run(*task, args), todo))
    results = {variant: {} for variant in VARIANTS}
    for (variant, seed), result in zip(todo, found, strict=True):
        results[variant][seed] = result
    print("| | smallest share of frames, % (each seed) | entropy | mutual information, bits | WER % |")
    print("|---|---|---:|---:|---:|")
    for variant, by_seed in results.items():
        usages = [result["usage"] for result in by_seed.values()]
        shares = ", ".join(f"{100 * usage['min_share']:.1f}" for usage in usages)
        entropy = mean(usage["entropy"]["all"] for usage in usages)
        information = mean(usage["mutual_information"] for usage in usages)
        wer = mean(result["wer"] for result in by_seed.values())
        print(f"| {variant} | {shares} | {entropy:.3f} | {information:.2f} | {wer:.1f} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"epochs": args.epochs, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
