"""`train` on every kind of experiment: records, identity, logs, resumption and branches to the bit, and a key for every seed."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.saad_solla import saad_solla
from odescale.analysis.forecast.fit import fit_law
from odescale.compare.log_report import report_logs
from odescale.errors import CheckpointError, InputError, SolveError
from odescale.networks.language_model import LanguageModel
from odescale.run import Run
from odescale.systems.attention_build import logistic_pair, quickstart
from odescale.systems.kernel_build import kernel
from odescale.systems.peaked import peaked
from odescale.systems.register import SYSTEMS
from odescale.systems.spectral import spectral
from odescale.systems.transformer import committee
from odescale.training.checkpoint import kept_checkpoint
from odescale.training.experiment import experiment_of
from odescale.training.grammar import Grammar
from odescale.training.language import language
from odescale.training.source_text import text_of
from odescale.training.spectral import GaussianTask, linear_sgd
from odescale.training.toy import toy_layer
from odescale.training.train import train

TEXT = text_of("def f(x):\n    return x + 1\n" * 30, "def g(y):\n    return y - 1\n" * 20, length=8, vocabulary=12)
GRAMMAR = Grammar(12, order=2, inverse_temperature=3.0, length=8)
MODEL = partial(LanguageModel, 12, 16, 1, 2, 8)
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"test_sequences": 64},
    "peaked": {"nodes": 64},
    "peaked, adam": {"nodes": 64},
    "spectral": {"momentum": 0.8},
}


class Plan(eqx.Module):
    """(1 + t/5)^-power, from `turn` on times `factor`: one program for all numbers, so that runs agree to the bit."""

    power: Any = eqx.field(converter=jnp.asarray)
    turn: Any = eqx.field(converter=jnp.asarray)
    factor: Any = eqx.field(converter=jnp.asarray)

    def __call__(self, t: Any) -> Any:
        return (1 + t / 5) ** -self.power * jnp.where(t < self.turn, 1.0, self.factor)


TINY = {"width": 8, "depth": 1, "samples": 4, "test_samples": 3, "tokens": 2, "inputs": 3, "outputs": 2}
# Name: (experiment from a schedule, theory, SGD steps in one unit of t).
KINDS: dict[str, tuple[Any, str, float]] = {
    "attention": (lambda s: logistic_pair(dimension=20, tokens=6, schedule=s), "attention", 20),
    "mean field, momentum": (lambda s: committee(dimension=20, momentum=0.5, nodes=64, replicates=2, schedule=s), "mean_field", 20),
    "peaked": (lambda s: peaked(classes=3, dimension=20, noise=0.0, schedule=s), "peaked", 20),
    "peaked, adam": (
        lambda s: peaked(classes=3, dimension=20, noise=0.0, optimizer="adam", learning_rate=0.02, schedule=s), "peaked", 1,
    ),
    "spectral": (lambda s: spectral(modes=12, schedule=s), "spectral", 1),
    "kernel": (lambda s: kernel(**TINY), "kernel", 1),
    "toy": (lambda s: toy_layer(0.05, "adam", 0.05, classes=6, inputs=4, batch=8, test_inputs=32), "toy", 1),
    "language": (lambda s: language(lambda key: MODEL(key=key), GRAMMAR, batch=4, learning_rate=0.05, momentum=0.9,
                                    held_out=8, schedule=s), "language", 1),
    "text": (lambda s: language(lambda key: MODEL(key=key), TEXT, batch=4, learning_rate=0.01, optimizer="adamw",
                                held_out=8, schedule=s), "language", 1),
}  # fmt: skip
UNSCHEDULED = ("kernel", "toy")
RECORDS = np.array([2, 4, 6, 9, 12, 15, 18, 21, 24, 28, 32, 36, 40])


def run(kind: str, *, last: int = 40, schedule: Any = None, **options: Any) -> Run:
    build, _, scale = KINDS[kind]
    given = {"seeds": None if kind == "kernel" else (0, 3), "record_times": RECORDS[last >= RECORDS] / scale}
    given |= SETTINGS.get(kind, {}) | options
    return train(build(schedule or Plan(0.2, 13 / scale, 1.0)), last / scale, progress=False, **given)


@cache
def whole(kind: str) -> Run:
    return run(kind)


def same(a: Run, b: Run, upto: int | None = None) -> None:
    for name in a.records:
        np.testing.assert_array_equal(a[name][:, :upto], b[name][:, :upto], err_msg=name)
    if upto is None:
        for x, y in zip(*(jax.tree.leaves(eqx.filter(r.model, eqx.is_array_like)) for r in (a, b)), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_says_what_it_is(kind: str, tmp_path: Any) -> None:
    """Same records and words for all: loss, sample loss, theory, clock; saved, loaded, printed, read as a log."""
    found, (_, theory, scale) = whole(kind), KINDS[kind]
    np.testing.assert_array_equal(found.step, RECORDS)
    np.testing.assert_allclose(found.t * scale, RECORDS)
    assert found["loss"].shape == found["train_loss"].shape == (len(found.seeds), RECORDS.size)
    assert all(np.isfinite(found[name]).all() for name in ("loss", "train_loss"))
    words = {"subject", "label", "scale", "learning_rate", "batch", "record_steps", "seeds", "precision", "schedule"}
    assert words <= set(found.config) and found.config["subject"] == theory and found.config["scale"] == scale
    back = Run.load(found.save(tmp_path / "run.npz"), like=found.model)
    same(found, back)
    assert back.config == found.config and len(str(back).splitlines()) <= 8
    log = found.log()
    assert log.loss[-1] == pytest.approx(found.mean()[-1])
    if theory not in SYSTEMS and theory != "mean_field":  # the runs of those are reported in test_contract.py
        report = report_logs([log])
        assert report.runs[0].log.loss[-1] == pytest.approx(found.mean()[-1])
        law = fit_law(log.curve())
        assert law.identified or law.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_run_goes_on_and_a_branch_is_the_run_it_would_have_been(kind: str, tmp_path: Any) -> None:
    """Killed after a record and between records; from a kept copy with another schedule; to the bit, momenta and sums included."""
    path, scale = tmp_path / "run.npz", KINDS[kind][2]

    def kill(step: int, model: Any) -> None:
        if step == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(kind, checkpoint=path, keep_at=(13 / scale,), callback=kill)
    kept = kept_checkpoint(path, 13)
    assert kept.name == "run.13.npz" and kept.exists()
    again = run(kind, checkpoint=path)
    assert again.meta["steps_this_session"] == 19
    same(again, whole(kind))
    # The copy lies between two records; what was summed since the last one comes with it.
    change = {} if kind in UNSCHEDULED else {"schedule": Plan(0.2, 13 / scale, 0.1)}
    branch, direct = run(kind, last=28, branch=kept, **change), run(kind, last=28, **change)
    assert branch.meta["steps_this_session"] == 15
    same(branch, direct)
    same(branch, whole(kind), upto=4)
    if change:
        assert np.abs(branch["loss"][:, -1] - whole(kind)["loss"][:, 9]).min() > 0
        with pytest.raises(CheckpointError, match="schedule before step 13"):
            run(kind, branch=kept, schedule=Plan(0.3, 13 / scale, 0.1))
    with pytest.raises(CheckpointError, match="record_steps"):
        run(kind, branch=kept, record_times=[3 / scale, 40 / scale])
    if kind != "kernel":
        with pytest.raises(CheckpointError, match="seeds"):
            run(kind, branch=kept, seeds=(0, 1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "kernel"])
def test_a_seed_has_its_own_numbers_whatever_runs_beside_it(kind: str) -> None:
    found, alone = whole(kind), run(kind, seeds=(3,))
    for name in alone.records:
        np.testing.assert_array_equal(alone[name][0], found[name][1], err_msg=name)
    assert (found["loss"][0] != found["loss"][1]).all() and (found["train_loss"][0] != found["train_loss"][1]).all()


@pytest.mark.parametrize("kind", ["attention", "peaked", "spectral", "text"])
def test_vmapped_seeds_of_an_accelerator_are_the_threads_of_a_cpu(kind: str, monkeypatch: Any, tmp_path: Any) -> None:
    given = {"last": 12, "precision": "float64"}
    threads = run(kind, **given)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    vmapped = run(kind, **given, checkpoint=tmp_path / "run.npz")
    for name in threads.records:
        np.testing.assert_allclose(vmapped[name], threads[name], rtol=1e-9, atol=1e-12, err_msg=name)
    same(vmapped, run(kind, **given, checkpoint=tmp_path / "run.npz"))


def test_seeds_and_steps_draw_their_own_data() -> None:
    """One weight, no signal: E theta^2 after one and two steps, its scatter over 2000 seeds and their correlation, within 4 errors.

    theta <- theta (1 - eta z^2) + eta s z xi. With one key for all seeds nothing would scatter; with one for all steps the second
    moment after two steps would be another.
    """
    eta, s2, count = 0.1, 0.7, 2000
    task = GaussianTask(jnp.ones(1), jnp.zeros(1), s2)
    found = train(linear_sgd(task, learning_rate=eta), 2, seeds=count, record_times=[1, 2], progress=False)
    first = eta**2 * s2
    second = first * (1 - 2 * eta + 3 * eta**2) + first
    for measured, exact in zip(found["loss"].T, (first, second), strict=True):
        assert abs(measured.mean() - exact) < 4 * measured.std() / np.sqrt(count)
    assert found.scatter()[0] == pytest.approx(np.sqrt(8 / count) * first, rel=0.25)  # var(z^2 xi^2) = 8
    repeated = first * (4 - 12 * eta + 15 * eta**2)  # the same z and xi twice
    assert abs(found.mean()[1] - repeated) > 4 * found.scatter()[1]
    theta = found.model["theta"][:, 0]
    assert abs(np.mean(theta[1:] * theta[:-1])) < 4 * np.mean(theta**2) / np.sqrt(count)


def test_last_step_that_throws_the_weights_away_is_seen() -> None:
    """The loss of a batch is taken before its step: only the weights show what the last step did."""

    base = linear_sgd(GaussianTask(jnp.ones(1), jnp.ones(1)), learning_rate=1e308)
    with pytest.raises(SolveError, match="seed 0 at step 0 "):
        train(base, 1, seeds=1, record_times=[1], progress=False)


@pytest.mark.parametrize(
    ("subject", "settings", "argument"),
    [
        (lambda: saad_solla(), {}, "subject"),
        (lambda: logistic_pair(dimension=20, tokens=np.inf), {}, "tokens"),
        (lambda: logistic_pair(dimension=20), {"nodes": 4}, "nodes"),
        (lambda: logistic_pair(dimension=20), {"test_sequence": 4}, "test_sequence"),
        (lambda: spectral(modes=4), {"momentum": -0.1}, "momentum"),
        (lambda: toy_layer(0.1), {"momentum": 0.1}, "momentum"),
        (lambda: 3.0, {}, "system"),
        (lambda: "quickstrat", {}, "system"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(subject: Any, settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        train(subject(), 1.0, progress=False, **settings)
    assert caught.value.argument == argument


def test_names_builders_and_settings_find_their_experiment() -> None:
    for subject in ("quickstart", quickstart, logistic_pair()):
        assert experiment_of(subject, test_sequences=8).test_sequences == 8  # type: ignore[attr-defined]
    built = experiment_of(linear_sgd(GaussianTask(jnp.ones(1), jnp.ones(1)), learning_rate=0.1))
    assert experiment_of(built) is built
