import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling.expert_balance import ExpertBalance, count_expert_load, load_balancing_loss, router_z_loss
from llm_asr.training.lora import add_lora


def choose(router_logits, num_experts_per_tok):
    return router_logits.topk(num_experts_per_tok, dim=-1).indices


def balancing_loss(router_logits, num_experts_per_tok):
    return load_balancing_loss(
        router_logits, count_expert_load(router_logits, choose(router_logits, num_experts_per_tok))
    )


def test_load_balancing_loss_is_one_when_balanced():
    """Balanced routing with one or four frames per expert, and a router without preference."""
    balanced = 3 * torch.eye(4).repeat(4, 1)
    assert balancing_loss(balanced, 1).item() == pytest.approx(1.0)
    assert balancing_loss(balanced + balanced.roll(1, dims=1), 2).item() == pytest.approx(1.0)
    assert balancing_loss(balanced, 4).item() == pytest.approx(1.0)
    assert balancing_loss(torch.zeros(10, 4), 2).item() == pytest.approx(1.0)


def test_load_balancing_loss_is_the_number_of_experts_when_collapsed():
    collapsed = torch.tensor([50.0, 0.0, 0.0, 0.0]).repeat(10, 1)
    assert balancing_loss(collapsed, 1).item() == pytest.approx(4.0)
    # With all experts chosen, only the router's probabilities show the collapse.
    assert balancing_loss(collapsed, 4).item() == pytest.approx(4.0)


@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3])
def test_load_balancing_loss_formula(num_experts_per_tok):
    router_logits = torch.randn(17, 4, dtype=torch.float64, requires_grad=True)
    probabilities = router_logits.softmax(-1)
    counts = [0] * 4
    for row in probabilities.tolist():
        for expert in sorted(range(4), key=row.__getitem__)[-num_experts_per_tok:]:
            counts[expert] += 1
    expected = 4 * sum(
        counts[expert] / (17 * num_experts_per_tok) * probabilities[:, expert].mean() for expert in range(4)
    )
    loss = balancing_loss(router_logits, num_experts_per_tok)
    # Shares are computed from counts in float32.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (actual,), (wanted,) = (torch.autograd.grad(each, router_logits, retain_graph=True) for each in (loss, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-9)


def test_load_balancing_loss_of_the_dense_mixture():
    router_logits = torch.randn(17, 4, dtype=torch.float64)
    expected = 4 * router_logits.softmax(-1).mean(0).square().sum()
    torch.testing.assert_close(balancing_loss(router_logits, 4), expected, rtol=1e-6, atol=0)


def test_router_z_loss_formula():
    router_logits = torch.randn(17, 4, dtype=torch.float64)
    expected = sum(row.exp().sum().log() ** 2 for row in router_logits) / 17
    torch.testing.assert_close(router_z_loss(router_logits), expected)
    assert router_z_loss(torch.zeros(3, 4)).item() == pytest.approx(torch.tensor(4.0).log().item() ** 2)
    assert router_z_loss(torch.full((2, 4), 1e4)).isfinite()


def test_losses_without_frames_are_zero():
    router_logits = torch.zeros(0, 4, requires_grad=True)
    balance = ExpertBalance(4, bias_update_rate=0.1)
    losses = balance(router_logits, choose(router_logits, 2), torch.tensor(3))
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    sum(losses).backward()
    assert not balance.e_score_correction_bias.any()


def split_step(num_micro_batches=3, seed=0):
    """Frames, choices and numbers of labels of the micro-batches of a step, and the total number of labels."""
    generator = torch.Generator().manual_seed(seed)
    micro_batches = []
    for index in range(num_micro_batches):
        router_logits = 2 * torch.randn(5 + 4 * index, 4, generator=generator)
        micro_batches.append((router_logits, choose(router_logits, 2), torch.tensor(7 + index)))
    return micro_batches, sum(int(num_labels) for *_, num_labels in micro_batches)


def test_statistics_accumulate_over_the_current_step():
    micro_batches, num_items = split_step()
    balance = ExpertBalance(4, bias_update_rate=0.0)
    for _ in range(2):  # the second step must not depend on the first
        load = torch.zeros(4)
        for router_logits, chosen, num_labels in micro_batches:
            load += count_expert_load(router_logits, chosen)
            aux_loss, z_loss = balance(router_logits, chosen, num_labels, num_items)
            share = num_labels / num_items
            torch.testing.assert_close(aux_loss, share * load_balancing_loss(router_logits, load))
            torch.testing.assert_close(z_loss, share * router_z_loss(router_logits))


def test_an_interrupted_step_is_discarded():
    (first, second, _), num_items = split_step()
    balance = ExpertBalance(4, bias_update_rate=0.0)
    balance(*first, num_items)
    aux_loss, _ = balance(*second, num_items + 1)
    fresh, _ = ExpertBalance(4, bias_update_rate=0.0)(*second, num_items + 1)
    assert torch.equal(aux_loss, fresh)


def test_evaluation_keeps_no_statistics():
    (first, second, third), num_items = split_step()
    balance = ExpertBalance(4, bias_update_rate=0.1)
    balance(*first, num_items)
    balance.eval()
    aux_loss, z_loss = balance(*second)
    torch.testing.assert_close(aux_loss, load_balancing_loss(second[0], count_expert_load(*second[:2])))
    torch.testing.assert_close(z_loss, router_z_loss(second[0]))
    balance.train()
    balance(*second, num_items)
    assert not balance.e_score_correction_bias.any()
    balance(*third, num_items)
    assert balance.e_score_correction_bias.all()


def test_the_bias_changes_once_per_step_against_the_load():
    micro_batches, num_items = split_step()
    balance = ExpertBalance(4, bias_update_rate=0.25)
    for micro_batch in micro_batches:
        assert not balance.e_score_correction_bias.any()
        balance(*micro_batch, num_items)
    load = sum(count_expert_load(router_logits, chosen) for router_logits, chosen, _ in micro_batches)
    assert torch.equal(balance.e_score_correction_bias, 0.25 * (load.mean() - load).sign())
    router_logits, chosen, num_labels = micro_batches[0]
    balance(router_logits, chosen, num_labels)  # a complete step
    second = count_expert_load(router_logits, chosen)
    assert torch.equal(
        balance.e_score_correction_bias, 0.25 * ((load.mean() - load).sign() + (second.mean() - second).sign())
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_equal_one_with_a_batch_twice_as_large(tmp_path, accumulation_steps):
    """Losses, gradients, the bias, and weights after three steps of the `Trainer` are equal."""
    script = Path(__file__).with_name("train_balanced.py")
    found = []
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.pt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        arguments = [str(output), str(accumulation_steps), str(8 // num_processes // accumulation_steps)]
        result = subprocess.run([sys.executable, *launcher, str(script), *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found.append(torch.load(output, weights_only=True))
    one, two = found
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-5)
    assert torch.equal(two["bias"], one["bias"])
    assert one["bias"].any()


@pytest.mark.slow
def test_experts_shard_by_fsdp2_like_any_parameter(tmp_path):
    script = Path(__file__).with_name("shard_model.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([sys.executable, *launcher, str(script), str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_bias_is_saved_in_float32_and_statistics_are_not(parts, tmp_path):
    model, _ = compose(parts, "moe_cif", router_bias_update_rate=0.01)
    balance = model.model.projector.moe.balance
    balance.e_score_correction_bias.copy_(torch.tensor([0.101, -0.203, 0.0, 0.001]))
    balance.expert_load.fill_(3.0)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).model.projector.moe
        assert loaded.experts.up_proj.dtype == dtype
        assert torch.equal(loaded.balance.e_score_correction_bias, balance.e_score_correction_bias)
        assert loaded.balance.expert_load.dtype == torch.float32
        assert not loaded.balance.expert_load.any()


def test_the_bias_is_saved_with_a_lora_adapter(parts, tmp_path):
    model, processor = compose(parts, "moe_cif", router_bias_update_rate=0.01)
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0).train()
    recordings = [0.1 * torch.randn(length).numpy() for length in (8000, 12000)]
    batch = processor.apply_transcription_request(recordings, transcription=["one two", "tres"])
    adapted(**batch)
    bias = adapted.get_base_model().model.projector.moe.balance.e_score_correction_bias.clone()
    assert bias.any()
    adapted.save_pretrained(tmp_path)
    fresh, _ = compose(parts, "moe_cif", router_bias_update_rate=0.01)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).get_base_model().model.projector.moe.balance
    assert torch.equal(loaded.e_score_correction_bias, bias)
