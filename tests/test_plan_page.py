"""The page and the command of a plan: every number of the plan, every option honoured or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

import odescale
from odescale.cli.main import main
from odescale.plot import plot

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
AS_TEXT = ",".join(f"{name}={value}" for name, value in LAW.items())


@pytest.fixture(scope="module")
def found():
    return odescale.plan(LAW, {"flop": 1e21, "memory": 24e9, "devices": 2, "hours": 200})


def test_page_has_the_plan_and_what_more_is_worth(found, tmp_path):
    page = odescale.write_report(found, tmp_path)
    text, record = page.with_name("report.md").read_text(), json.loads(page.with_name("report.json").read_text())
    assert record["numbers"]["params"] == found["params"] and record["binding"] == found.binding
    assert (tmp_path / "plan.png").stat().st_size > 5000
    for one in found.worth:
        assert one.name.replace("_", "\\_") in text and f"{one.right:.4g}".replace(".", "\\.") in text.replace(
            "\\.", "\\."
        )
    for name in ("peak", "utilisation", "token"):
        assert name in text


def test_picture_has_a_bar_for_every_budget(found):
    axes = plot(found)
    bars = [bar.get_width() for bar in axes["worth"].patches]
    assert bars[: len(found.worth)] == [one.right for one in found.worth[::-1]]
    assert "loss per e-fold" in axes["worth"].get_xlabel()


def test_command_plans_by_numbers_and_by_a_table(tmp_path, capsys):
    asked = ["plan", "--budget", "flop=1e21", "--out", str(tmp_path / "o"), "--json"]
    assert main([*asked, "--law", AS_TEXT]) == 0
    record = json.loads(capsys.readouterr().out)
    # Closed form: N* = G (C/6)^a.
    a = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    G = (LAW["alpha"] * LAW["A"] / (LAW["beta"] * LAW["B"])) ** (1 / (LAW["alpha"] + LAW["beta"]))
    assert record["numbers"]["params"] == pytest.approx(G * (1e21 / 6) ** a, rel=1e-6)

    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 9.5, 40), 10 ** rng.uniform(9, 11, 40)
    loss = (LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * D ** -LAW["beta"]) * np.exp(
        0.002 * rng.normal(size=40)
    )
    rows = "\n".join(f"{n!r},{d!r},{v!r}" for n, d, v in zip(N.tolist(), D.tolist(), loss.tolist(), strict=True))
    (tmp_path / "runs.csv").write_text(f"params,tokens,loss\n{rows}\n")
    assert main([*asked, str(tmp_path / "runs.csv"), "--bootstrap", "60", "--level", "0.99", "--draws", "20"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    low, high = fitted["intervals"]["params"]
    assert low < record["numbers"]["params"] < high and fitted["level"] == 0.99


def test_choices_assumptions_and_ranges_are_honoured(tmp_path, capsys):
    asked = ["plan", "--law", AS_TEXT, "--budget", "hours=100", "--out", str(tmp_path), "--json"]

    def answer(*more):
        assert main([*asked, *more]) == 0
        return json.loads(capsys.readouterr().out)

    plain, faster = answer(), answer("--assume", "utilisation=0.8")
    assert faster["numbers"]["train_flop"] == pytest.approx(2 * plain["numbers"]["train_flop"])
    chosen = answer("--choice", "optimizer=adam,sgd", "--assume", "token_factor.adam=0.5")
    assert chosen["setup"]["optimizer"] == "sgd"
    held = answer("--range", "params=1e7:1e8")
    assert held["numbers"]["params"] <= 1e8 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--budget", "flop"], "--budget"), (["--budget", "flop=much"], "--budget"), (["--budget", "money=3"], "budgets"),
        (["--assume", "luck=1"], "--assume"), (["--choice", "zero=7"], "zero"), (["--range", "params=3"], "--range"),
        (["--plot", "a.txt"], "--plot"), (["nowhere.csv"], "plan"), (["--budget", "memory=1e3"], "memory"),
    ],
)  # fmt: skip
def test_bad_options_in_one_line(options, word, tmp_path, capsys):
    assert main(["plan", "--law", AS_TEXT, "--budget", "flop=1e21", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error
