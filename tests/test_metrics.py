import math

import pytest
import torch

from collm.metrics import BootstrapMean, episode_numbers, summarized
from collm.trajectory import Action, Task, Trajectory, Turn, collate


def computed(*updates: object) -> dict[str, float]:
    metric = BootstrapMean()
    for values in updates:
        metric.update(values)
    return {name: float(number) for name, number in metric.compute().items()}


def test_mean_of_all_values_however_they_arrive():
    # (1 + 2 + 3 + 6) / 4 = 3
    assert computed(torch.tensor([1.0, 2.0]), 3.0, torch.tensor([[6.0]]))["mean"] == pytest.approx(3.0)
    assert computed(torch.tensor([1.0, 2.0, 3.0, 6.0])) == computed(1.0, 2.0, 3.0, 6.0)


def test_interval_of_two_values():
    # Resamples of {0, 1} have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: more than 2.5 % lie at either end.
    assert computed(0.0, 1.0) == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_interval_of_a_coin():
    # 400 values, half of them 1: the mean of a resample is Binomial(400, 1/2) / 400 with standard deviation
    # 10 / 400 = 0.025, so the interval is close to 0.5 -+ 1.96 * 0.025 = (0.451, 0.549).
    numbers = computed(torch.arange(400) % 2)
    assert numbers["mean"] == 0.5
    assert numbers["low"] == pytest.approx(0.451, abs=0.005)
    assert numbers["high"] == pytest.approx(0.549, abs=0.005)


def test_one_value_and_equal_values_have_no_width():
    assert computed(0.25) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert computed(*[0.25] * 7) == {"mean": 0.25, "low": 0.25, "high": 0.25}


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_value_is_nan():
    assert all(math.isnan(number) for number in computed().values())
    assert all(math.isnan(number) for number in computed(torch.empty(0)).values())


def test_interval_repeats_and_leaves_the_global_generator_alone():
    values = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0, 7.0])
    state = torch.get_rng_state()
    first = computed(values)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1234)
    assert computed(values) == first
    assert first["low"] < first["mean"] < first["high"]


def test_take_resets_the_profiler():
    metric = BootstrapMean()
    metric.update(100.0)
    metric.reset()
    metric.update(1.0)
    assert float(metric.compute()["mean"]) == 1.0


def test_resampling_in_chunks_changes_nothing(monkeypatch):
    values = torch.arange(30)
    whole = computed(values)
    monkeypatch.setattr("collm.metrics.CHUNK", 100)  # 3 resamples of 30 values at a time
    assert computed(values) == whole


def test_values_of_all_processes_count():
    # What a gather over two processes does to the state: this one's values and the other's.
    metric = BootstrapMean(
        distributed_available_fn=lambda: True, dist_sync_fn=lambda value, group=None: [value, torch.tensor([7.0, 9.0])]
    )
    metric.update(torch.tensor([1.0, 3.0]))
    assert float(metric.compute()["mean"]) == 5.0  # (1 + 3 + 7 + 9) / 4
    metric.update(torch.tensor([1.0, 3.0]))  # after the sync the process has its own values again
    assert len(torch.cat(metric.values)) == 4


def test_a_term_of_any_turn_is_logged_as_its_sum_over_the_episodes_that_have_it():
    def played(*terms: dict[str, float]) -> Trajectory:
        turns = [Turn({"a": ""}, {"a": Action("x")}, sum(each.values()), each) for each in terms]
        return Trajectory(Task("t", {}), 0, len(turns), 1.0, turns)

    batch = collate([played({"x": 1.0}, {"late": 0.5}, {"x": 2.0, "late": 0.25}), played({"x": 5.0}), played()])
    logged = summarized(episode_numbers(batch))
    # x is 1 + 2 = 3 and 5; late is 0.5 + 0.25 in the one episode that has it
    assert (logged["reward/x"], logged["reward/late"]) == (4.0, 0.75)
