"""Times of rollouts, the map of policies, their pictures and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

import odescale
from odescale import rollouts
from odescale.cli.main import main
from odescale.errors import InputError

NUMBERS = {"body": 200.0, "cap": 1500.0, "requests": 12, "threshold": 4, "depth": 4, "verified": 6}


@pytest.fixture(scope="module")
def found() -> rollouts.RolloutTimes:
    return rollouts.rollout_times(rollouts.rollout(workers=3, imbalance=0.5, **NUMBERS), draws=1024)


def test_makespan_and_waiting(found) -> None:
    """The slowest of workers: later than their mean by what they wait; the gain on shared draws; what it makes of a step."""
    assert (
        found.makespan[0] == pytest.approx(found.time + found.idle[0], rel=1e-12) and found.idle[0] > 5 * found.idle[1]
    )
    assert abs(found.drawn.mean() - found.makespan[0]) < 4 * found.drawn.std() / np.sqrt(1024)
    assert found.gain[0] == pytest.approx(found.plain[0] / found.makespan[0]) and found.gain[1] < 0.02 * found.gain[0]
    assert found.end_to_end(0.85) == pytest.approx(1 / (0.15 + 0.85 / found.gain[0])) and found.end_to_end(0.0) == 1
    tokens, time = found.switches[4.0]
    assert float(found.system.lengths.survival(tokens)) == pytest.approx(4 / 12) and 0 < time < found.time
    assert "gain" in str(found) and found.to_dict()["gain"] == found.gain


def test_quantiles_cover() -> None:
    """The interval of a quantile holds the one of many draws as often as it says; a wrong quantile would not."""
    system = rollouts.rollout(**(NUMBERS | {"requests": 3, "threshold": 0}))
    many = np.quantile(rollouts.rollout_times(system, draws=100_000, seed=99).drawn, 0.8)
    hits = wrong = 0
    for seed in range(60):
        place, (low, high) = rollouts.rollout_times(system, draws=200, seed=1000 + seed).quantile(0.8, level=0.9)
        assert low <= place <= high
        hits += low <= many <= high
        wrong += low <= 1.15 * many <= high
    assert stats.binom.cdf(hits, 60, 0.9) > 0.005 and hits < 60 and stats.binom.cdf(wrong, 60, 0.9) < 1e-6


def test_map_of_policies() -> None:
    costs = rollouts.Costs(saturation=60.0, fixed=0.4, crowding=0.1)
    found = rollouts.policy_map(costs, batches=[1, 8, 200], firsts=[0.2, 0.6, 0.95], deepest=6)
    for i, first in enumerate(found.first):
        for j, b in enumerate(found.batch):
            own = rollouts.Acceptance(first, 0.02)
            gains = [1.0] + [float(rollouts.speedup(costs, own, b, d, d + 1)) for d in range(1, 7)]
            assert found.depth[i, j] == int(np.argmax(gains)) and found.gain[i, j] == pytest.approx(max(gains))
    assert found.depth[0, 2] == 0 and found.depth[2, 0] == 6 and "plain in" in str(found)
    with pytest.raises(InputError, match="firsts"):
        rollouts.policy_map(costs, firsts=[0.0])


def test_pictures(found) -> None:
    panels = odescale.plot(found)
    assert "plain rounds" in panels["live"].get_xlabel() and "makespan" in panels["makespan"].get_xlabel()
    best = rollouts.best_strategies(rollouts.Costs(), rollouts.Acceptance(), batches=[1, 4, 16])
    assert len(odescale.plot(best)["gain"].get_legend().get_texts()) == len(
        set(zip(best.depth, best.verified, strict=True))
    )
    drawn = odescale.plot(rollouts.policy_map(rollouts.Costs(), batches=[1, 4, 16], firsts=[0.5, 0.9]))["map"]
    assert "batch" in drawn.get_xlabel() and "a_1" in drawn.get_ylabel()
    rng, idle, kappa, rows = np.random.default_rng(0), np.arange(2.0, 26.0) % 9 + 1, 0.5, []
    for t in idle:
        after = 0.1 + (kappa - 0.1) * np.exp(-0.1 * t)
        rows.append(np.array([kappa, after]) + rng.normal(0, 0.01, 2))
        kappa = after + 0.05
    panel = odescale.plot(rollouts.fit_drafter(*np.transpose(rows), idle, draws=20))["kappa"]
    assert "updates" in panel.get_xlabel() and "nats" in panel.get_ylabel()
    course = odescale.integrate(rollouts.drafter(requests=4, workers=2, body=60.0, cap=400.0, rate=2e-3), 20.0)
    assert "updates" in odescale.plot(course, kind="drafter")["kappa"].get_xlabel()


SET = [part for name, value in (NUMBERS | {"workers": 2}).items() for part in ("--set", f"{name}={value}")]


def test_command(capsys, tmp_path) -> None:
    assert main(["rollout", *SET, "--draws", "256", "--json", "--share", ".7"]) == 0
    record = json.loads(capsys.readouterr().out)
    gain = record["gain"][0]
    assert (
        record["end_to_end"] == pytest.approx(1 / (0.3 + 0.7 / gain))
        and gain > 1
        and record["time_unit"].startswith("plain")
    )
    truth, own = rollouts.Costs(saturation=200.0, context=0.02, fixed=0.2, draft=0.05), rollouts.Acceptance(0.8, 0.05)
    rows = [(b, d, v) for b in (1, 2, 4, 8, 16, 32, 64) for d, v in ((0, 1), (3, 4), (6, 16))]
    b, d, v = np.array(rows, float).T
    speed = 50 * b * own.tokens(d) / rollouts.round_time(truth, b, d, v)
    table = np.stack([b, d, v, np.asarray(speed), np.asarray(own.tokens(d))], axis=1)
    np.savetxt(
        tmp_path / "speeds.csv",
        table,
        delimiter=",",
        header="batch,depth,verified,tokens_per_second,accepted_length",
        comments="",
    )
    where = ["--set", "requests=12", "--set", "body=200", "--set", "cap=1500", "--draws", "256"]
    assert main(["rollout", *where, "--costs", str(tmp_path / "speeds.csv"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (
        record["costs"]["costs"]["context"] == pytest.approx(0.02, rel=0.02) and "@" in record["parameters"]["policy"]
    )
    assert main(["rollout", "--costs", str(tmp_path / "speeds.csv"), "--set", "draft=.1"]) == 2
    assert "draft" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert main(["rollout", "--set", "workers=0"]) == 2 and capsys.readouterr().err.count("\n") == 1
