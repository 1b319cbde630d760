"""Every system through every verb: each works at a small size or is refused by an `InputError`, and nothing else ever.

One table. A theory that is added to the register is in it by itself; `SMALL` only says how to make it small. `phase_retrieval`
comes from outside the package, in one file that starts at a derivation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compilations

import odescale
from odescale.cli.main import main
from odescale.systems.register import SYSTEMS

FILE = Path(__file__).with_name("phase_retrieval.py")
OUTSIDE = f"{FILE}:phase_retrieval"
SMALL: dict[str, tuple[dict[str, Any], float]] = {
    "attention": ({"depth": 1, "dimension": 40, "tokens": 8}, 4.0),
    "quickstart": ({"dimension": 40, "tokens": 8}, 4.0),
    "logistic_pair": ({"dimension": 40, "tokens": 8}, 4.0),
    "transformer": ({"depth": 1, "tokens": 2, "nodes": 64, "replicates": 2, "dimension": 60}, 1.0),
    "committee": ({"nodes": 64, "replicates": 2, "dimension": 60}, 1.0),
    "peaked": ({"classes": 3, "dimension": 60}, 3.0),
    "kernel": ({"width": 8, "depth": 1, "samples": 4, "test_samples": 2, "tokens": 2, "inputs": 2, "outputs": 2}, 40.0),
    "spectral": ({"modes": 16}, 60.0),
    "rollout": ({"requests": 8, "body": 60.0, "cap": 400.0, "threshold": 4}, 390.0),
    "drafter": ({"requests": 4, "workers": 2, "body": 60.0, "cap": 400.0, "rate": 2e-3}, 80.0),
    OUTSIDE: ({"dimension": 60}, 3.0),
}
NAMES = (*(name for name in SYSTEMS if name != "phase_retrieval"), OUTSIDE)


def small(name: str) -> tuple[dict[str, Any], float]:
    return SMALL.get(name, ({}, SYSTEMS[name].t1 if name in SYSTEMS else 1.0))


def knob(name: str) -> str:
    """The number that is varied: of what is trained by SGD the learning rate."""
    return {"rollout": "context", "drafter": "drift"}.get(name, "learning_rate")


def turned(name: str) -> float:
    own = system(name)
    return float(own.clock.learning_rate if knob(name) == "learning_rate" else getattr(own, knob(name)))  # type: ignore[arg-type]


def points(name: str) -> int:
    """Output times of all verbs, those of `odescale transition`: the shapes of the arrays decide what is compiled again."""
    return 2 * (SYSTEMS[name].points if name in SYSTEMS else 200)


@cache
def system(name: str) -> odescale.AbstractSystem:
    from odescale.systems.register import as_system

    return as_system(name, **small(name)[0])


@cache
def trajectory(name: str) -> odescale.Trajectory:
    return odescale.integrate(system(name), small(name)[1], points=points(name))


@cache
def run(name: str) -> odescale.Run:
    return odescale.train(system(name), small(name)[1], records=9, progress=False, **({"seeds": 2} | trained(name)))


def trained(name: str) -> dict[str, Any]:
    if name in ("attention", "quickstart", "logistic_pair"):
        return {"test_sequences": 256}
    return {"seeds": 1} if name == "kernel" else {}


@cache
def comparison(name: str) -> odescale.Comparison:
    return odescale.compare(system(name), run(name))


def integrates(name: str, folder: Path) -> None:
    found = trajectory(name)
    assert np.all(np.isfinite(found.loss[found.valid])) and found.valid[-1]


def integrates_again(name: str, folder: Path) -> None:
    """Whatever the numbers: checks, solve and remarks of a second system of the same kind compile nothing."""
    trajectory(name)
    other = eqx.tree_at(lambda one: getattr(one, knob(name)), system(name), replace_fn=lambda value: 0.9 * value)
    with compilations() as before:
        jax.jit(lambda x: x + 1)(jnp.ones(3))
    assert before, "the count sees nothing"
    with compilations() as found:
        odescale.integrate(other, 0.95 * small(name)[1], points=points(name), rtol=3e-4)
    assert found == []


def sweeps(name: str, folder: Path) -> None:
    rate = turned(name)
    found = odescale.sweep(system(name), small(name)[1], {knob(name): [0.5 * rate, rate]}, points=points(name))
    assert found.loss.shape == (2, points(name))
    np.testing.assert_allclose(found.loss[1], trajectory(name).loss, rtol=2e-3, equal_nan=True)
    assert "2 parameter sets" in str(found)


def sweeps_by_name(name: str, folder: Path) -> None:
    rate = turned(name)
    numbers = {"points": points(name), "max_steps": system(name).integration.most_steps}  # those of the command
    found = odescale.sweep(name, small(name)[1], {knob(name): [rate, 0.5 * rate]}, **numbers, **small(name)[0])
    np.testing.assert_allclose(found.loss[0], trajectory(name).loss, rtol=2e-3, equal_nan=True)


def finds_transition(name: str, folder: Path) -> None:
    found = odescale.find_transition(system(name), small(name)[1], points=points(name))
    assert found.reason and (found.t_x is None) != found.found


def trains(name: str, folder: Path) -> None:
    found = run(name)
    assert found["loss"].shape == (len(found.seeds), len(found.step)) and np.all(np.isfinite(found["loss"]))


def logs(name: str, folder: Path) -> None:
    log = run(name).log()
    report = odescale.report_logs([log])
    assert report.runs[0].log is log
    fitted = odescale.fit_law(log.curve())
    assert fitted.identified or fitted.reason


def compares(name: str, folder: Path) -> None:
    found = comparison(name)
    assert found.verdict.status in ("agrees", "differs", "undecided", "outside the theory")
    assert "loss" in found.quantities


def plots(name: str, folder: Path) -> None:
    for result in (trajectory(name), run(name), comparison(name)):
        axes = odescale.plot(result)
        first = next(iter(axes.values())) if isinstance(axes, dict) else np.ravel(axes)[0]
        assert system(name).clock.step in "".join(a.get_xlabel() for a in first.figure.axes)


def saves(name: str, folder: Path) -> None:
    back = odescale.Trajectory.load(trajectory(name).save(folder / "theory.npz"))
    np.testing.assert_array_equal(back.loss, trajectory(name).loss)
    again = odescale.Run.load(run(name).save(folder / "run.npz"))
    np.testing.assert_array_equal(again["loss"], run(name)["loss"])
    assert again.config == json.loads(json.dumps(run(name).config))


def speaks(name: str, folder: Path) -> None:
    for noun in (system(name), trajectory(name), run(name), comparison(name)):
        for text in (str(noun), repr(noun)):
            assert len(text.splitlines()) <= 8 and any(c.isdigit() for c in text), text
    assert system(name).clock.step in str(system(name))


PYTHON: tuple[Callable[[str, Path], None], ...] = (
    integrates, integrates_again, sweeps, sweeps_by_name, finds_transition, trains, logs, compares, plots, saves, speaks,
)  # fmt: skip
REFUSED: dict[tuple[str, str], str] = {}
"""What a theory cannot do, and has to refuse by an `InputError`; everything else must work."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", PYTHON, ids=lambda verb: verb.__name__)
def test_verb(verb: Callable[[str, Path], None], name: str, tmp_path: Path) -> None:
    if (name, verb.__name__) in REFUSED:
        with pytest.raises(odescale.InputError):
            verb(name, tmp_path)
    else:
        verb(name, tmp_path)


def command(verb: str, name: str, folder: Path) -> list[str]:
    settings, t1 = small(name)
    words = [verb, name, "--json", "--t1", str(t1)]
    words += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    rate = turned(name)
    extra = {
        "solve": ["--points", str(points(name))],
        "sweep": ["--vary", f"{knob(name)}={0.5 * rate}:{rate}:2", "--points", str(points(name))],
        "train": ["--seeds", str(trained(name).get("seeds", 2)), "--records", "3", "--out", str(folder)],
        "compare": ["--seeds", str(trained(name).get("seeds", 2)), "--records", "9", "--out", str(folder)],
    }
    return words + extra.get(verb, [])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["solve", "transition", "sweep", "train", "compare"])
def test_command(verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(command(verb, name, tmp_path))
    out, err = capsys.readouterr()
    # No exception: `odescale sweep kernel` builds the one kernel and varies its own learning rate.
    assert status == 0, err
    record = json.loads(out, parse_constant=lambda text: pytest.fail(text))
    assert record["system"] and record["code"] == 0
    if verb == "compare":  # and with it `write_report`
        assert Path(record["path"]).read_text().startswith("# ")
        found = [one for one in (record["transition"] or {}).values() if isinstance(one, dict)]
        assert all(one["thresholds"]["efolds"] == 1.5 for one in found)
        assert found or name not in ("attention", "quickstart", "logistic_pair")
        written = (tmp_path / "comparison.json").read_text()
        assert json.loads(written, parse_constant=lambda text: pytest.fail(text))["verdict"] == record["verdict"]
        assert {"comparison.png", "theory.npz", "run.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_words_of_the_tables_are_those_of_the_networks() -> None:
    """The tables are read without JAX and so repeat the names of activations and readouts."""
    from odescale.networks.blocks import ACTIVATIONS
    from odescale.networks.library import READOUTS
    from odescale.systems import tables

    assert (tuple(ACTIVATIONS), tuple(READOUTS)) == (tables.ACTIVATIONS, tables.READOUTS)


@pytest.mark.parametrize(
    "subject", [3.0, "quickstrat", "nowhere.py:build", "odescale:nothing", f"{FILE}:nothing", None]
)
@pytest.mark.parametrize("verb", ["integrate", "find_transition", "train"])
def test_what_is_no_system_is_refused(verb: str, subject: Any) -> None:
    with pytest.raises(odescale.InputError):
        getattr(odescale, verb)(subject, 1.0)
    with pytest.raises(odescale.InputError):
        odescale.sweep(subject, 1.0, {"learning_rate": [0.1]})


def test_register_is_open_and_jealous() -> None:
    def build(learning_rate: float = 0.1):
        return system("quickstart")

    odescale.register("borrowed", t1=1.0, description="somebody else's")(build)
    try:
        assert "borrowed" in odescale.available_systems()
        assert [p.name for p in SYSTEMS["borrowed"].parameters] == ["learning_rate"]
        with pytest.raises(odescale.InputError, match="name: expected a new name"):
            odescale.register("quickstart", t1=1.0, description="taken")(build)
    finally:
        del SYSTEMS["borrowed"]


def test_derived_theory_is_followed_by_real_rows() -> None:
    """Automatic differentiation of the sample loss on 32 real runs against the derived ODE; without its noise it is refuted."""
    from phase_retrieval import phase_retrieval

    settings: dict[str, Any] = {"learning_rate": 0.25, "batch": 1, "dimension": 200}
    whole, silent = phase_retrieval(**settings), phase_retrieval(**settings, noise=0.0)
    runs = odescale.train(whole, 4.0, seeds=32, record_times=[1.0, 2.0, 3.0, 4.0], progress=False)
    agrees, differs = (odescale.compare(theory, runs) for theory in (whole, silent))
    assert agrees.verdict.status == "agrees" and np.abs(agrees.quantities["loss"].z).max() < 3.5
    assert differs.verdict.status == "differs"
