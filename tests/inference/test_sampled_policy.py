"""The policy that trains is the one that was sampled, also where top-p, top-k or a shortest length cut it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from actors import sampled
from collm.inference.sampling import Sampling, draw
from collm.models import scores
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.objectives import policy_gradient_loss
from collm.packing import action_sequences, pad_sequences
from collm.returns import discounted_returns
from collm.sampling_mask import SamplingMask
from collm.trajectory import Task, Trajectory, Turn
from enumerated import FULL, Enumerated
from on_policy import CUTS, batch_of, log_ratios
from tabular import AGENTS, HISTORIES

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36], [7, 8, 9]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy_of(folder: str, engine: str, **options) -> Policy:
    backbone = Backbone(folder, "float32")
    policy = Policy("a", PolicySpec(folder, engine=engine, max_new_tokens=7, **options), backbone, None)
    policy.eos_ids = set(range(0, 400, 4))  # responses of many lengths
    return policy


@pytest.mark.parametrize("engine", ["collm", "transformers"])
@pytest.mark.parametrize("cut", [*CUTS, {"top_p": 0.8, "allowed_words": [" glass", " sand", "0", "1"]}], ids=str)
def test_the_ratio_is_one_before_the_first_step(tiny_folder: str, engine: str, cut: dict) -> None:
    policy = policy_of(tiny_folder, engine, **{name: value for name, value in cut.items() if name != "allowed_words"})
    if "allowed_words" in cut:
        policy.allowed_ids = [18, 27, 36, 45, 46, 47]
    actions = sampled(policy, PROMPTS, seeded(), greedy=False)
    assert len({len(action.token_ids) for action in actions}) > 1
    ratios = log_ratios(policy, actions).exp()
    assert (ratios - 1).abs().max() < 1e-5
    uncut = policy_of(tiny_folder, engine, trained_policy="uncut", **{k: v for k, v in cut.items() if "_w" not in k})
    uncut.allowed_ids = policy.allowed_ids
    actions = sampled(uncut, PROMPTS, seeded(), greedy=False)
    assert all(action.sampling_mask is None for action in actions)
    assert log_ratios(uncut, actions).abs().max() < 1e-5


def test_log_probs_and_their_gradient_are_those_of_the_kept_tokens(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against log pi(a) - logsumexp over the kept set, written out; in chunks that end within a response too."""
    policy = policy_of(tiny_folder, "collm", top_p=0.7, temperature=0.6)
    policy.eos_ids = set()
    actions = sampled(policy, PROMPTS, seeded(), greedy=False)
    monkeypatch.setattr(scores, "LOGITS_PER_CHUNK", 3 * policy.backbone.vocabulary_size)
    batch = batch_of("a", actions)
    ours, entropies = policy.log_probs(batch)
    expected, expected_entropy = [], []
    for action in actions:
        ids = torch.tensor([[*action.prompt_ids, *action.token_ids]])
        logits = policy.backbone.lm(ids).logits[0, len(action.prompt_ids) - 1 : -1] / 0.6
        for row, token, kept in zip(logits, action.token_ids, action.sampling_mask.dense(logits.shape[1]), strict=True):
            expected.append(row[token] - row[kept].logsumexp(0))
            expected_entropy.append(torch.distributions.Categorical(logits=row[kept]).entropy())
    found = ours[batch.action_mask]
    order = torch.cat([torch.tensor(action.token_ids) for action in actions])
    assert_close(batch.ids[batch.action_mask], order)
    assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert_close(entropies[batch.action_mask], torch.stack(expected_entropy), atol=1e-5, rtol=1e-4)
    weights = torch.randn(len(found), generator=seeded())
    parameters = policy.parameters()
    gradients = [torch.autograd.grad((weights * values).sum(), parameters) for values in (found, torch.stack(expected))]
    assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_the_cut_policy_is_right_and_that_of_the_uncut_one_biased() -> None:
    """One agent, one token of five, top-p 0.7: E[r] of the policy that acts, differentiated exactly.

    p = softmax(log [.5, .25, .15, .07, .03]); top-p 0.7 keeps the first two, so that the policy that acts is [2/3, 1/3]
    with rewards [0, 3]: E[r] = 1. Its gradient in the logits is p_k (r_k - E[r]): [-2/3, 2/3, 0, 0, 0]. Of the uncut
    log-probability, d log p(a) = 1_a - p: the sum over a of q_a r_a (1_a - p) is 1/3 * 3 * ([0, 1, 0, 0, 0] - p).
    """
    p, rewards = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]), torch.tensor([0.0, 3.0, 7.0, 7.0, 7.0])
    logits = p.log().requires_grad_()
    found = {}
    for uncut in (False, True):
        drawn, log_probs, mask = draw(
            logits.detach().repeat(20000, 1), Sampling(1, top_p=0.7, uncut=uncut), seeded(), None
        )
        assert set(drawn.tolist()) == {0, 1}
        assert drawn.float().mean() == pytest.approx(1 / 3, abs=0.01)
        estimate = torch.zeros(5)
        for action, probability in ((0, 2 / 3), (1, 1 / 3)):  # exactly, instead of the mean of what was drawn
            place = drawn.tolist().index(action)
            kept = None if mask is None else mask.take(torch.tensor([place]))
            head = lambda states: logits[None] + 0 * states  # noqa: E731
            log_prob, _ = scores.score(head, torch.zeros(1, 1), torch.tensor([action]), 5, 1.0, None, kept)
            assert log_prob.item() == pytest.approx(log_probs[place].item(), abs=1e-6)
            (slope,) = torch.autograd.grad(log_prob.sum(), logits)
            estimate += probability * rewards[action] * slope
        found[uncut] = estimate
    assert_close(found[False], torch.tensor([-2 / 3, 2 / 3, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert_close(found[True], torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]) - p, atol=1e-5, rtol=0)
    assert (found[True] - found[False]).abs().max() > 0.1  # biased: it also moves tokens that are never drawn


def test_in_a_game_of_two_turns_only_the_cut_policies_give_the_gradient_of_what_is_played() -> None:
    """All episodes that two agents cut at top-p 0.7 can play, each with its exact probability.

    An agent with two actions keeps both where the likelier one has less than 0.7, and one otherwise. The true gradient
    differentiates the probabilities of episodes; the estimate is the policy loss with the rewards to go as advantages
    and the log-probabilities that updates compute, of actions as they are drawn.
    """
    game, top_p = Enumerated(FULL), 0.7
    tables = {name: policy.logits.clone().requires_grad_() for name, policy in game.policies.items()}
    kept = {name: cut_by_hand(table.softmax(-1), top_p) for name, table in tables.items()}
    played = {
        name: game.log_probs_under(name, table.masked_fill(~kept[name], -torch.inf)) for name, table in tables.items()
    }
    probabilities = sum(played.values()).sum(1).exp()
    assert {1, 2} == set(kept[AGENTS[0]].sum(1).tolist())
    assert 0 < (probabilities > 0).sum() < len(probabilities)
    assert probabilities.sum().item() == pytest.approx(1)
    expected = torch.autograd.grad((probabilities * game.batch.rewards.sum(1)).sum(), list(tables.values()))
    weighted = discounted_returns(game.batch.rewards, game.batch.turn_mask, 1.0) * probabilities.detach()[:, None]
    for uncut in (False, True):
        found = []
        for name, table in tables.items():
            scored = log_probs_of_updates(game, name, table, Sampling(1, top_p=top_p, uncut=uncut))
            loss = policy_gradient_loss(scored, scored.detach(), weighted, game.batch.turn_mask)
            found.append(-torch.autograd.grad(loss, table)[0])
        errors = [(one - other).abs().max().item() for one, other in zip(found, expected, strict=True)]
        assert all(error > 0.01 if uncut else error < 1e-5 for error in errors), errors


def cut_by_hand(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """True at the actions that are kept of two."""
    return (probabilities == probabilities.amax(1, keepdim=True)) | (probabilities.amax(1, keepdim=True) < top_p)


def log_probs_of_updates(game: Enumerated, agent_id: str, table: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities of an agent's actions with the sets that are recorded when its histories are answered, [B, T].

    Actions that are never drawn count 0: no episode has them.
    """
    rows = torch.zeros_like(game.batch.rewards)
    for row, path in enumerate(game.batch.trajectories):
        for turn, step in enumerate(path.turns):
            action = step.actions[agent_id]
            logits = table[HISTORIES.index(tuple(action.prompt_ids))]
            drawn, _, masks = draw(logits.detach().repeat(200, 1), sampling, seeded(), None)
            if action.token_ids[0] not in drawn.tolist():
                continue
            place = drawn.tolist().index(action.token_ids[0])
            mask = None if masks is None else masks.take(torch.tensor([place]))
            head = lambda states, logits=logits: logits[None] + 0 * states  # noqa: E731
            rows[row, turn] = scores.score(head, torch.zeros(1, 1), torch.tensor(action.token_ids), 2, 1.0, None, mask)[
                0
            ]
    return rows


def test_sets_come_back_from_their_compact_form() -> None:
    """Small sets list what was kept, large ones what was cut, and the whole vocabulary nothing."""
    kept = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)
    mask = SamplingMask.of(kept)
    assert mask.counts.tolist() == [1, -1, 0, 2]
    assert mask.ids.tolist() == [0, 4, 1, 3]
    assert torch.equal(mask.dense(5), kept)
    for order in itertools.permutations(range(4)):
        assert torch.equal(mask.take(torch.tensor(order)).dense(5), kept[list(order)])
    assert torch.equal(mask.take(torch.tensor([False, True, False, True])).dense(5), kept[[1, 3]])
    parts = mask.split([1, 0, 3])
    assert [len(part) for part in parts] == [1, 0, 3]
    assert torch.equal(SamplingMask.join([*parts, SamplingMask.uncut(1)]).dense(5), torch.cat([kept, kept[2:3]]))
    assert len(SamplingMask.join([]).dense(5)) == 0


@pytest.mark.parametrize("forbidden", [None, [3, 11]])
def test_sets_of_a_shortest_length_alone_are_those_of_the_cut_logits(forbidden: list[int] | None) -> None:
    forbidden_ids = None if forbidden is None else torch.tensor(forbidden)
    logits = torch.randn(4, 12, generator=seeded())
    _, log_probs, mask = draw(logits, Sampling(5, min_new_tokens=2), seeded(), forbidden_ids)
    kept = torch.ones(4, 12, dtype=torch.bool)
    kept[:, forbidden or []] = False
    assert mask is not None
    assert mask.dense(12).equal(kept)
    expected = SamplingMask.of(kept)
    assert mask.ids.equal(expected.ids)
    assert mask.ids.dtype == expected.ids.dtype
    assert mask.counts.equal(expected.counts)
    assert mask.counts.dtype == expected.counts.dtype
    assert (log_probs <= 0).all()


def test_greedy_tokens_and_uncut_distributions_keep_no_sets() -> None:
    logits = torch.randn(3, 8, generator=seeded())
    for sampling in (Sampling(1, top_p=0.5, greedy=True), Sampling(1), Sampling(1, top_p=0.5, uncut=True)):
        assert draw(logits, sampling, seeded())[2] is None
    for sampling in (Sampling(1, top_p=0.5), Sampling(1, top_k=2), Sampling(1, min_new_tokens=1)):
        assert draw(logits, sampling, seeded())[2] is not None


def test_the_turns_of_a_dialogue_keep_their_sets_in_one_row(tiny_folder: str) -> None:
    """Two turns of which the second prompt goes on from the first, and an action that another episode shares."""
    policy = policy_of(tiny_folder, "collm", top_p=0.7)
    (first,) = sampled(policy, [[7, 8, 9]], seeded(1), greedy=False)
    second, other = sampled(policy, [[7, 8, 9, *first.token_ids, 30, 31]] * 2, seeded(2), greedy=False)
    demonstrated = replace(other, sampling_mask=None, uid="shown")
    trajectories = [
        Trajectory(Task(str(row), {}), row, 2, 1.0, [Turn({"a": ""}, {"a": action}, 0.0) for action in actions])
        for row, actions in enumerate([[first, second], [first, other], [demonstrated]])
    ]
    sequences = action_sequences(trajectories, "a")
    assert [len(sequence.sampling_masks) for sequence in sequences] == [4, 4, 0]
    batch = pad_sequences(sequences, 0, "cpu")
    assert batch.action_mask.sum().item() == sum(len(one.token_ids) for one in (first, second, other, other))
    with torch.no_grad():
        drift = policy.log_probs(batch)[0] - batch.old_log_probs
    assert drift[:2].abs().max() < 1e-5
    assert drift[2].abs().max() > 1e-2  # nothing is known of what was demonstrated, so nothing is cut
