"""The planner against closed forms, differences of its own answers, brute-force scans, and budgets that nothing fits."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from benchmarks.planner import CASES, LAW
from odescale import fit_law, fit_table, plan, spectral
from odescale.errors import InputError, OutsideTheoryError
from odescale.frontier import compute_frontier, risk_law
from odescale.laws import LossCurve, optimum, planned_curve, scaling_table
from odescale.resources import (
    Assumptions,
    Budgets,
    ChinchillaLaw,
    Setup,
    law_of,
    plain_law,
    schedule_law,
    setups,
    system_law,
    table_law,
)


@pytest.mark.parametrize("seed", range(4))
def test_compute_alone_is_the_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 0.7, 2)
    law = {"E": rng.uniform(0, 2), "A": 10 ** rng.uniform(1, 4), "B": 10 ** rng.uniform(1, 4), "alpha": a, "beta": b}
    C = 10 ** rng.uniform(19, 25)
    found = plan(law, {"flop": C}, ranges={"params": (1.0, 1e20), "tokens": (1.0, 1e20)})
    size = (a * law["A"] / (b * law["B"])) ** (1 / (a + b)) * (C / 6) ** (b / (a + b))
    assert found["params"] == pytest.approx(size, rel=1e-6)
    assert found["tokens"] == pytest.approx(C / 6 / size, rel=1e-6)
    assert found.value_of("flop").right == pytest.approx(a * b / (a + b) * (found.loss - law["E"]), rel=1e-6)
    assert found.binding == {"flop": pytest.approx(found.value_of("flop").right, rel=1e-6)}
    # dlog N*/dlog 6 = -beta/(alpha + beta), and the loss pays the multiplier.
    moved = {s.name: s for s in found.sensitivity}["train_cost"]
    assert moved.change["params"] == pytest.approx(-b / (a + b), rel=1e-5)
    assert moved.loss == pytest.approx(found.value_of("flop").right, rel=1e-5)


def test_served_tokens_against_the_other_solver() -> None:
    found = plan(LAW, {"flop": 1e22, "served_tokens": 1e12})
    other = optimum(LAW, 1e22, served=1e12)
    assert found["params"] == pytest.approx(float(other.params.value[0]), rel=1e-6)
    assert found.value_of("flop").right == pytest.approx(float(other.multiplier.value[0]), rel=1e-6)
    assert found.value_of("served_tokens").right < 0


@pytest.mark.parametrize("name", CASES)
def test_every_multiplier_is_a_difference(name: str) -> None:
    """Plans at budgets 0.1 % to either side, all choices open: their difference is the multiplier, for every resource."""
    law, budgets, binding, assumptions = CASES[name]
    found = plan(law, budgets, assumptions=assumptions)
    assert set(found.binding) == binding
    assert found.residual < 1e-4
    for resource, amount in budgets.items():
        up, down = (
            plan(law, budgets | {resource: amount * np.exp(s)}, assumptions=assumptions).loss for s in (1e-3, -1e-3)
        )
        worth = found.value_of(resource)
        assert worth.left == worth.right == pytest.approx((down - up) / 2e-3, rel=0.01, abs=1e-8)
        assert worth.one_percent == pytest.approx(worth.right * np.log(1.01), rel=0.02, abs=1e-8)
        assert worth.per_unit == pytest.approx(worth.right / amount)
    for limit, use in {"flop": "flop", "memory": "memory", "hours": "hours", "max_epochs": "epochs"}.items():
        if limit in budgets:
            assert found[use] <= budgets[limit] * (1 + 1e-9)
            assert (limit in binding) == (found[use] > budgets[limit] * (1 - 1e-6))


@pytest.mark.parametrize("name", ["memory", "unique tokens", "wall-clock", "critical batch"])
def test_no_point_of_a_scan_is_better(name: str) -> None:
    """Costs written out again here, on a fine grid of sizes, tokens and batches."""
    law, budgets, _, assumptions = CASES[name]
    found = plan(law, budgets, assumptions=assumptions)
    N, D = np.meshgrid(np.geomspace(0.2, 5, 801) * found["params"], np.geomspace(0.2, 5, 801) * found["tokens"])
    best = np.inf
    n = budgets.get("devices", 1)
    batches = np.geomspace(4096 * n, 1e8, 40) if name == "critical batch" else [found["batch"]]
    for setup in (found.setup, *(o.setup for o in found.others)):
        for batch in batches:
            flop = 6 * N * D * {"none": 1, "selective": 1.027, "full": 4 / 3}[setup.checkpointing]
            fits = flop <= budgets["flop"]
            if "hours" in budgets:
                latency = 0.5 if assumptions else 0.0
                fits &= flop / (n * 9.89e14 * 0.4) + latency * D / batch <= 3600 * budgets["hours"]
            if "memory" in budgets:
                depth = (N / (12 * 128**2)) ** (1 / 3)
                token = {"none": 34 + 5 * 4096 / 128, "selective": 34, "full": 2}[setup.checkpointing]
                held = {0: 16, 1: 4 + 12 / n, 2: 2 + 14 / n, 3: 16 / n}[setup.zero] * N
                fits &= held + 4096 * 128 * depth**2 * token <= budgets["memory"]
            worth = D
            if "repetition" in law:
                U = np.minimum(D, budgets["unique_tokens"])
                worth = U + U * 15.39 * (1 - np.exp(-(D / U - 1) / 15.39))
            if "critical_batch" in law:
                worth = D / (1 + batch / 2e6)
            loss = LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * worth ** -LAW["beta"]
            best = min(best, loss[fits].min(initial=np.inf))
    assert found.loss <= best * (1 + 1e-9)
    assert best <= found.loss + 2e-3


def test_unique_tokens_scanned_finely() -> None:
    law, budgets, _, _ = CASES["unique tokens"]
    found = plan(law, budgets)

    def loss(log_n: float) -> float:
        N = np.exp(log_n)
        D = 1e22 / 6 / N
        worth = 2e10 * (1 + 15.39 * (1 - np.exp(-(D / 2e10 - 1) / 15.39)))
        return LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * worth ** -LAW["beta"]

    scan = minimize_scalar(loss, bounds=(np.log(1e9), np.log(5e10)), method="bounded", options={"xatol": 1e-10})
    assert found.loss == pytest.approx(scan.fun, rel=1e-10)
    assert found["params"] == pytest.approx(np.exp(scan.x), rel=1e-4)
    assert found["epochs"] == pytest.approx(found["tokens"] / 2e10)


def test_memory_of_every_choice() -> None:
    """Bytes per parameter of the sources, on 8 devices; a small activation is subtracted."""
    told = Assumptions(sequence=1e-9)
    N, n = np.array(7e9), np.array(8.0)
    per = (
        (Setup(), 16), (Setup("adam-8bit"), 10), (Setup("muon"), 12), (Setup(zero=1), 4 + 12 / 8),
        (Setup(zero=2), 2 + 14 / 8), (Setup(zero=3), 2), (Setup(adapter="lora"), 2.16), (Setup(adapter="qlora"), 0.66),
    )  # fmt: skip
    for setup, value in per:
        assert float(told.memory(N, n, setup) / N) == pytest.approx(value, rel=1e-9), setup
    # GPT-3 at 2048 tokens: 96 layers of 12288, 96 heads; Korthikanti et al.: sbhL (34 + 5as/h).
    gpt = Assumptions(sequence=2048)
    N = np.array(12.0 * 96 * 12288**2)
    for kind, token in (("none", 34 + 5 * 96 * 2048 / 12288), ("selective", 34), ("full", 2)):
        more = float(gpt.memory(N, n, Setup(checkpointing=kind)) - 16 * N)
        assert more == pytest.approx(2048 * 12288 * 96 * token, rel=1e-9)
    assert len(setups()) == 6 * 3 * 4 * 3


def test_a_switch_has_two_sides() -> None:
    """At the memory where no checkpointing overtakes it: left and right multipliers are those of the two choices."""

    def budgets(m: float) -> dict[str, float]:
        return {"flop": 3e20, "memory": float(m)}

    def gap(log_m: float) -> float:
        return alone("none", np.exp(log_m)).loss - alone("full", np.exp(log_m)).loss

    pair = {"checkpointing": ("none", "full")}

    def alone(kind: str, m: float):
        return plan(LAW, budgets(m), choices={"checkpointing": kind})

    at = float(brentq(gap, np.log(1e9), np.log(200e9), xtol=1e-13))
    m = float(np.exp(at))
    found = plan(LAW, budgets(m), choices=pair)
    both, sides = found.value_of("memory"), [alone(kind, m).value_of("memory").right for kind in ("full", "none")]
    assert abs(sides[0] - sides[1]) > 1e-3
    assert both.left == pytest.approx(sides[0], rel=1e-6) and both.right == pytest.approx(sides[1], rel=1e-6)
    below, above = (plan(LAW, budgets(m * f), choices=pair) for f in (0.999, 1.001))
    assert (below.setup.checkpointing, above.setup.checkpointing) == ("full", "none")
    assert (below.loss - found.loss) / 1e-3 == pytest.approx(both.left, rel=0.01, abs=1e-6)
    assert (found.loss - above.loss) / 1e-3 == pytest.approx(both.right, rel=0.01)


@pytest.mark.parametrize(
    ("budgets", "what", "amount"),
    [
        ({"flop": 1e21, "memory": 1e6, "devices": 4}, "memory", r"at least ([0-9.e+-]+) GiB"),
        ({"hours": 0.0}, "hours", r"hours at least ([0-9.e+-]+)"),
        ({"flop": 1e5}, "flop", r"flop at least ([0-9.e+-]+)"),
        ({"flop": 1e21, "unique_tokens": 10.0}, "unique_tokens", r"unique_tokens at least ([0-9.e+-]+)"),
    ],
)
def test_what_nothing_fits_is_refused_with_the_smallest_change(budgets, what, amount) -> None:
    with pytest.raises(OutsideTheoryError, match="smallest") as told:
        plan(LAW, budgets)
    (found,) = re.findall(amount, str(told.value))[:1]
    least = float(found) * (2**30 if what == "memory" else 1)
    plan(LAW, budgets | {what: least})
    with pytest.raises(OutsideTheoryError):
        plan(LAW, budgets | {what: least * 0.998})


def test_two_budgets_that_are_both_too_small() -> None:
    with pytest.raises(OutsideTheoryError, match="together") as told:
        plan(LAW, {"flop": 1e5, "memory": 1e6})
    flop, gib = (
        re.findall(p, str(told.value))[0] for p in (r"flop at least ([0-9.e+]+)", r"at least ([0-9.e+-]+) GiB")
    )
    plan(LAW, {"flop": float(flop), "memory": float(gib) * 2**30})


def test_devices_for_a_model_that_does_not_fit() -> None:
    with pytest.raises(OutsideTheoryError, match="devices with ZeRO-3") as told:
        plan(LAW, {"flop": 1e24, "memory": 80e9, "devices": 2}, ranges={"params": (7e10, 1e12)})
    devices = int(str(told.value).split(" devices with ZeRO-3")[0].split()[-1])
    again = plan(LAW, {"flop": 1e24, "memory": 80e9, "devices": devices}, ranges={"params": (7e10, 1e12)})
    assert again.setup.zero == 3 and again["params"] >= 7e10
    with pytest.raises(OutsideTheoryError):
        plan(LAW, {"flop": 1e24, "memory": 80e9, "devices": devices - 1}, ranges={"params": (7e10, 1e12)})


def test_more_devices_than_the_batch_is_good_for() -> None:
    """Every device holds a micro-batch: with time to spare more of them only enlarge the batch, and the plan says so."""
    law, budgets = LAW | {"critical_batch": 1e5}, {"flop": 1e22, "devices": 64}
    found, fewer = plan(law, budgets), plan(law, budgets | {"devices": 32})
    assert found["batch"] == pytest.approx(64 * 4096) and fewer.loss < found.loss
    assert found.value_of("devices").right < 0 and any("fewer devices" in note for note in found.notes)


def test_factors_are_the_users() -> None:
    budgets = {"flop": 1e23, "memory": 80e9}
    choices = {"optimizer": ("adam", "adam-8bit")}
    free = plan(LAW, budgets, choices=choices)
    assert free.setup.optimizer == "adam-8bit" and any("NO effect" in note for note in free.notes)
    paid = plan(LAW, budgets, choices=choices, assumptions=Assumptions(token_factor={"adam-8bit": 0.05}))
    assert paid.setup.optimizer == "adam" and not any("NO effect" in note for note in paid.notes)
    names = {s.name for s in paid.sensitivity}
    assert "token_factor adam" in names
    with pytest.raises(InputError, match="token_factor"):
        Assumptions(token_factor={"adamm": 1.0})


def test_sensitivities_are_differences() -> None:
    law, budgets, _, _ = CASES["memory"]
    found = plan(law, budgets)
    own = {name: getattr(found.setup, name) for name in ("optimizer", "checkpointing", "zero", "adapter")}
    assert {"train_cost", "sequence", "aspect"} <= {s.name for s in found.sensitivity}
    for one in found.sensitivity:
        if " " in one.name:
            continue
        base = getattr(Assumptions(), one.name)
        ends = [
            plan(law, budgets, assumptions=Assumptions(**{one.name: base * np.exp(s)}), choices=own)
            for s in (-1e-3, 1e-3)
        ]
        assert (ends[1].loss - ends[0].loss) / 2e-3 == pytest.approx(one.loss, rel=1e-3, abs=1e-8), one.name
        moved = np.log(ends[1]["params"] / ends[0]["params"]) / 2e-3
        assert moved == pytest.approx(one.change["params"], rel=1e-3, abs=1e-7), one.name


def test_laws_that_it_was_not_made_for() -> None:
    """A three-variable risk law against the frontier's closed form, a surface on a grid, a callable with its own costs."""
    law = risk_law((1, 2, 3), (0.5, 0.4, 0.3), (2, 1, 1), names=("width", "data", "depth"))
    found = plan(law, {"flop": 1e12})
    S = 2 / 0.5 + 1 / 0.4 + 1 / 0.3
    products = np.prod([(a * e / q) ** (q / (e * S)) for a, e, q in ((1, 0.5, 2), (2, 0.4, 1), (3, 0.3, 1))])
    assert found.loss == pytest.approx(S * products * 1e12 ** (-1 / S), rel=1e-7)
    assert found.value_of("flop").right == pytest.approx(found.loss / S, rel=1e-6)
    with pytest.raises(InputError, match="memory"):
        plan(law, {"memory": 1e9})
    # Floors and an exponential in time: the closed form on both sides of the critical compute 1.23659e8, and at it.
    law = risk_law((1, 1), (0.5, 0.5), (2, 1), decay=50, rate=0.8, time_cost=1, floors=(100, 1000))
    for C in (5e7, 1.23659e8, 1e9):
        found, exact = plan(law, {"flop": C}), compute_frontier(law, [C])
        assert found.loss == pytest.approx(float(exact.risk[0]), rel=1e-9)
        assert found.value_of("flop").right == pytest.approx(float(exact.exponent[0] * exact.risk[0]), rel=1e-6)

    loss = ChinchillaLaw(**LAW)
    sizes, tokens = np.geomspace(1e8, 1e11, 25), np.geomspace(1e9, 1e13, 25)
    surface = loss(params=sizes[:, None], tokens=tokens[None, :])
    on_grid = plan(table_law({"params": sizes, "tokens": tokens}, surface), {"flop": 1e21})
    assert on_grid["params"] == pytest.approx(plan(LAW, {"flop": 1e21})["params"], rel=2e-3)

    own = plain_law(
        lambda width, time: 40 * width**-0.5 + 9 * time**-0.3, {"width": (8, 1e5), "time": (1, 1e9)},
        params=lambda v: 12 * v["width"] ** 2, flop=lambda v: 72 * v["width"] ** 2 * v["time"],
    )  # fmt: skip
    found = plan(own, {"flop": 1e12})
    # a x^-p + b y^-q at x^2 y = C/72: p a x^-p / 2 = q b y^-q.
    assert 0.5 * 40 * found["width"] ** -0.5 / 2 == pytest.approx(0.3 * 9 * found["time"] ** -0.3, rel=1e-6)
    assert found["params"] == pytest.approx(12 * found["width"] ** 2)


def test_a_system_as_the_law() -> None:
    """SGD on the first M of 64 modes, the rest a floor: the plan's loss and optimum by the recursion written out here."""
    d, eta, batch = 64, 0.1, 4
    lam, rho = np.arange(1.0, d + 1) ** -1.5, np.arange(1.0, d + 1) ** -0.5

    def seen(size: float) -> tuple[np.ndarray, float]:
        # A soft cut, so that the loss is smooth in M: weight of mode k.
        weight = 1 / (1 + (np.arange(1, d + 1) / size) ** 8)
        return weight, float((lam * rho * (1 - weight)).sum())

    def build(size: float):
        weight, floor = seen(size)
        return spectral(eigenvalues=lam, excess=rho * weight, floor=floor, learning_rate=eta, batch=batch)

    def by_steps(size: float, steps: int) -> float:
        weight, floor = seen(size)
        excess = rho * weight
        gain = 1 - 2 * eta * lam + eta**2 * (1 + 1 / batch) * lam**2
        for _ in range(steps):
            excess = gain * excess + eta**2 / batch * lam * (floor + lam @ excess)
        return floor + float(lam @ excess)

    law = system_law(
        build, "modes", np.geomspace(3, 40, 12), np.geomspace(10, 3e4, 60), flop=lambda v: 6 * v["modes"] * v["time"],
        params=lambda v: v["modes"], tokens=lambda v: v["time"] * batch, floor=lambda size: seen(size)[1],
    )  # fmt: skip
    found = plan(law, {"flop": 6e4})
    size, steps = found["modes"], found["time"]
    assert size * steps == pytest.approx(1e4) and 3.5 < size < 35
    assert found.loss == pytest.approx(by_steps(size, round(steps)), rel=2e-3)
    for factor in (0.7, 0.85, 1.2, 1.4):
        assert by_steps(size * factor, round(1e4 / (size * factor))) > found.loss * (1 - 5e-4)
    ends = [plan(law, {"flop": 6e4 * np.exp(s)}).loss for s in (-1e-3, 1e-3)]
    assert found.value_of("flop").right == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.01)


def test_a_fitted_schedule_law() -> None:
    """Steps are what is planned: C = 6 N B T, and the multiplier is alpha A tau^-alpha of the fitted power law."""
    steps = np.geomspace(100, 20_000, 120)
    curves = []
    for name, rate, seed in (("a", 1e-3, 0), ("b", 3e-3, 1)):
        noise = 1 + 1e-3 * np.random.default_rng(seed).standard_normal(steps.size)
        curves.append(
            LossCurve(name, steps, (2 + 3 * (rate * steps) ** -0.5) * noise, np.full(steps.size, rate), 100 * rate)
        )
    fit = fit_law(curves, law="power_tau")

    def schedule(T: float) -> LossCurve:
        at = np.linspace(0, T, 65)[1:]
        return planned_curve("plan", at, np.full(64, 1e-3), [T])

    law = schedule_law(fit, schedule, (200, 50_000), params=1e8, batch=5e5)
    found = plan(law, {"flop": 3e18})
    assert found["steps"] == pytest.approx(3e18 / (6 * 1e8 * 5e5), rel=1e-9)
    assert found["tokens"] == pytest.approx(5e9) and found["batch"] == pytest.approx(5e5)
    assert found.loss == pytest.approx(float(fit.loss(schedule(found["steps"]))[0]), rel=1e-6)
    assert found.value_of("flop").right == pytest.approx(0.5 * 3 * (1e-3 * found["steps"]) ** -0.5, rel=0.02)
    assert found.intervals["loss"][0] < found.loss < found.intervals["loss"][1]
    hours = plan(law, {"hours": 1.0})
    assert hours.binding.keys() == {"hours"} and hours["hours"] == pytest.approx(1.0)


def test_intervals_are_those_of_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    C = np.repeat(np.geomspace(1e18, 1e21, 6), 7)
    N = optimum(LAW, C).params.value * np.tile(np.geomspace(0.2, 5, 7), 6)
    loss = ChinchillaLaw(**LAW)(params=N, tokens=C / 6 / N) * np.exp(0.003 * rng.standard_normal(C.size))
    fit = fit_table(scaling_table(params=N, flop=C, loss=loss), bootstrap=100)
    found, other = plan(fit, {"flop": 1e23}), optimum(fit, 1e23)
    assert found["params"] == pytest.approx(float(other.params.value[0]), rel=1e-6)
    for name in ("params", "tokens", "loss"):
        low, high = found.intervals[name]
        own = getattr(other, name)
        assert low == pytest.approx(float(own.low[0]), rel=1e-3) and high == pytest.approx(float(own.high[0]), rel=1e-3)
    assert found.intervals["worth flop"][0] < found.value_of("flop").right < found.intervals["worth flop"][1]
    assert any("outside the runs" in note for note in found.notes)


def test_the_plan_as_text_and_record() -> None:
    law, budgets, _, _ = CASES["memory"]
    found = plan(law, Budgets(**budgets))
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["numbers"]["params"] == found["params"] and record["setup"]["zero"] == 3
    text = "\n".join(found.lines())
    for word in ("GiB per device", "worth of memory", "runners-up", "train_cost = 6", "Korthikanti", "NO effect"):
        assert word in text
    assert all(len(row) == 3 for row in found.table())
    order = [found.loss, *(o.loss for o in found.others)]
    assert all(a <= b + 1e-12 for a, b in pairwise(order))


@pytest.mark.parametrize(
    ("law", "budgets", "word"),
    [
        (LAW, {}, "budgets"),
        (LAW, {"flops": 1e21}, "budgets"),
        (LAW, {"flop": "much"}, "flop"),
        (LAW, {"flop": 1e21, "devices": 0}, "devices"),
        (LAW, {"flop": 1e21, "max_epochs": 2}, "max_epochs"),
        ({"E": 1.0}, {"flop": 1e21}, "law"),
        (LAW | {"gamma": 1.0}, {"flop": 1e21}, "law"),
        (3.0, {"flop": 1e21}, "law"),
    ],
)
def test_bad_arguments_are_named(law, budgets, word) -> None:
    with pytest.raises(InputError) as told:
        plan(law, budgets)
    assert told.value.argument == word


def test_ranges_and_choices_are_checked() -> None:
    with pytest.raises(InputError, match="ranges"):
        law_of(LAW, {"width": (1, 2)})
    with pytest.raises(InputError, match="zero"):
        plan(LAW, {"flop": 1e21}, choices={"zero": 4})
    with pytest.raises(InputError, match="choices"):
        plan(LAW, {"flop": 1e21}, choices={"optimiser": "adam"})
    held = plan(LAW, {"flop": 1e21}, ranges={"params": (1e6, 1e9)})
    assert held["params"] == pytest.approx(1e9) and any("end of its range" in note for note in held.notes)
