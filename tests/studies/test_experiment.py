"""The file of an experiment, the initial weights of projectors, and the targets of CIF."""

from pathlib import Path

import compare
import pytest
import torch
from comparison.experiment import FACTORIAL_ARMS, load_experiment
from comparison.running import (
    TargetCollator,
    compose_model,
    count_targets,
    initialize_projector,
    select_audio,
    set_loudness,
)
from tiny_experiment import ARMS, write_experiment

from llm_asr.training.data_collator import LlmAsrDataCollator


def test_equal_parts_of_projectors_have_equal_initial_weights(parts, tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, parts))
    states = {}
    arms = [*ARMS[:4], "moe_stack", "qformer", "ctc"]
    projectors = {arm: {**experiment.projector, "projector_type": arm} for arm in arms}
    for arm in arms:
        model, _ = compose_model(experiment, projectors[arm])
        # Earlier random draws must not matter.
        torch.rand(len(states))
        initialize_projector(model, 3)
        states[arm] = {name: tensor.clone() for name, tensor in model.model.projector.state_dict().items()}
    for name in states["moe"].keys() & states["moe_cif"].keys():
        if states["moe"][name].shape == states["moe_cif"][name].shape:
            assert torch.equal(states["moe"][name], states["moe_cif"][name]), name
    # Weights have the same spread as with Transformers' initialisation. Biases and scales are not random.
    for arm, state in states.items():
        reference, _ = compose_model(experiment, projectors[arm])
        for name, tensor in reference.model.projector.state_dict().items():
            found, expected = state[name].float(), tensor.float()
            if (expected == expected.ravel()[0]).all():
                assert torch.equal(found, expected), name
            else:
                assert found.std().item() == pytest.approx(expected.std().item(), rel=0.6), name


@pytest.mark.parametrize(
    "projector",
    [*({"projector_type": arm} for arm in (*ARMS[:4], "stack", "qformer", "ctc")), {"num_shared_experts": 1}],
)
def test_projectors_start_with_the_given_loudness(fresh, projector):
    experiment, data = fresh
    projector = {"projector_type": "moe", **experiment.projector, **projector}
    model, processor = compose_model(experiment, projector)
    initialize_projector(model, 0)
    collator = LlmAsrDataCollator(processor, hidden_states_column="audio_hidden_states")
    batch = collator([data.datasets["train"][index] for index in range(4)])

    def loudness():
        embeds = model.get_audio_features(**select_audio(batch)).pooler_output
        return (embeds.square().mean() / model.get_input_embeddings().weight.square().mean()).sqrt().item()

    drawn = loudness()
    assert drawn != pytest.approx(1, rel=0.1)
    for wanted in (1, 3):
        before = loudness()
        assert set_loudness(model, batch, wanted) == pytest.approx(wanted / before)
        assert loudness() == pytest.approx(wanted)


def test_an_experiment_inherits_from_its_base(parts, tmp_path):
    write_experiment(tmp_path, parts)
    (tmp_path / "other.yaml").write_text("base: experiment.yaml\nname: other\nseeds: [5, 6, 7]\nablation_seeds: [7]\n")
    base, other = (load_experiment(tmp_path / f"{name}.yaml") for name in ("experiment", "other"))
    assert other.name == "other"
    assert other.seeds == [5, 6, 7]
    assert (other.arms, other.ablations, other.results) == (base.arms, base.ablations, base.results)


@pytest.mark.parametrize(("cif_target", "counts"), [("word", [2, 3]), ("character", [7, 12])])
def test_cif_receives_the_target_counts_of_its_unit(fresh, cif_target, counts):
    experiment, data = fresh
    assert [count_targets(text, cif_target) for text in ("one two", "uno  dos tres ")] == counts
    _, processor = compose_model(experiment, {"projector_type": "cif"})
    inner = LlmAsrDataCollator(processor, hidden_states_column="audio_hidden_states")
    rows = [data.datasets["train"][index] for index in (0, 2)]
    assert TargetCollator(inner, cif_target)(rows)["target_lengths"].tolist() == counts
    assert torch.equal(TargetCollator(inner, "token")(rows)["target_lengths"], inner(rows)["target_lengths"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, "two or more different seeds"),
        ({"seeds": [0, 0]}, "two or more different seeds"),
        ({"search_seed": 1}, "`search_seed` \\(1\\) must not be one of `seeds`"),
        ({"ablation_seeds": [7]}, "must be among `seeds`"),
        ({"learning_rates": []}, "must not be empty"),
        ({"loudness": []}, "`loudness` must hold positive numbers"),
        ({"loudness": [0]}, "`loudness` must hold positive numbers"),
        ({"training": {"seed": 3}}, r"must leave out \['seed'\]"),
        ({"arms": {"conv": {"projector_type": "conv"}}}, r"lacks \['moe', 'cif', 'moe_cif'\]"),
        ({"ablations": {"conv": {"like": "moe"}}}, r"\['conv'\] are `arms` already"),
        ({"ablations": {"a": {"like": "b"}}}, "`like` of 'a' must be one of `arms`"),
        ({"ablations": {"a": {"like": "cif", "cif_target": "phone"}}}, "`cif_target` of 'a' must be one of"),
        ({"ablations": {"a": {"like": "conv", "match_parameters": "b"}}}, "`match_parameters` of 'a'"),
        ({"ablations": {"a": {"like": "moe", "num_expert": 3}}}, "num_expert"),
        ({"ablations": {"a": {"like": "moe", "against": ["b"]}}}, r"`against` of 'a' must list some of `arms`"),
        ({"sedes": [0, 1]}, r"unknown fields \['sedes'\]"),
    ],
)
def test_an_impossible_experiment_is_refused(parts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(write_experiment(tmp_path, parts, **changes))


@pytest.mark.parametrize("name", ["recorded", "loudness", "espeak", "smollm2"])
def test_the_published_experiments_can_be_read(name):
    experiment = load_experiment(Path(compare.__file__).parent / f"{name}.yaml")
    assert set(FACTORIAL_ARMS) <= set(experiment.arms)
    assert any(
        experiment.arm(name).match_parameters == "moe_cif" for name in (*experiment.arms, *experiment.ablations)
    )
    assert "top 1" in experiment.ablations
