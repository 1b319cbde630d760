"""The one-third law in a real transformer: `python -m benchmarks.peaked_language` trains on a language of peaked conditionals.

A decoder-only softmax transformer learns a deterministic Markov language of order 8 over 32 tokens by plain SGD, three seeds.
Its excess loss is exact (known conditionals). The local exponent over the last decade of steps is compared with that of the
aligned order-parameter flow at the same logit scales, for Gaussian fields (the system `peaked`) and for the fields that the
language itself has. Three controls change what the theory assumes. Of every run the learning rate is then taken to zero: an
upper bound of the part of the loss that gradient noise keeps up, as the run also learns meanwhile. Writes
benchmarks/results/peaked_language.json; trainings are kept in checkpoints beside it, so that a second call only measures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).resolve().parent / "results"
TOLERANCE = 0.05  # of the local exponent, from the acceptance
BOUNDARY = 0.3  # top gaps below this, in units of the fields, count as inside the boundary layer


class Case(NamedTuple):
    """One training: settings of the language, the model and the loop, and what it is for."""

    what: str
    grammar: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]


LANGUAGE = {"vocabulary": 32, "order": 8, "length": 16}
MODEL = {"vocabulary": 32, "width": 64, "depth": 2, "heads": 4, "context": 16, "gains": False}
SGD = {"learning_rate": 0.3, "batch": 64, "steps": 20_000, "seeds": (0, 1, 2)}
SHORT = SGD | {"steps": 8000, "batch": 32, "seeds": (0, 1)}
CASES = {
    "slow": Case("plain SGD, no gains, lr .1: least gradient noise", LANGUAGE, MODEL, SGD | {"learning_rate": 0.1}),
    "sgd": Case("plain SGD, no gains, lr .3", LANGUAGE, MODEL, SGD),
    "gains": Case("control: gains in the norms, logits of degree two", LANGUAGE, MODEL | {"gains": True}, SHORT),
    "table": Case("control: order 1, 32 contexts with a smallest gap", LANGUAGE | {"order": 1}, MODEL, SHORT),
    "adamw": Case("control: Adam at lr .001", LANGUAGE, MODEL, SHORT | {"optimizer": "adamw", "learning_rate": 1e-3}),
}


def train_case(
    name: str, steps: int | None = None, seeds: tuple[int, ...] | None = None, folder: Path | None = FOLDER
) -> Any:
    """(grammar, `Run`) of a case; `folder` None keeps no checkpoint."""
    from odescale import train
    from odescale.language import Grammar, LanguageModel, language

    case = CASES[name]
    grammar = Grammar(**case.grammar)
    training = case.training | ({} if steps is None else {"steps": steps}) | ({} if seeds is None else {"seeds": seeds})
    checkpoint = None if folder is None else folder / f"peaked_language_{name}_{training['steps']}.npz"
    steps, which = training.pop("steps"), training.pop("seeds")
    model = language(lambda key: LanguageModel(**case.model, key=key), grammar, **training)
    return grammar, train(model, steps, seeds=which, record_times=record_steps(steps), checkpoint=checkpoint)


def record_steps(steps: int) -> np.ndarray:
    """41 log-spaced steps from steps/1000 on."""
    return np.geomspace(max(1.0, steps / 1000), steps, 41)


def aligned_flow(classes: int) -> dict[str, np.ndarray]:
    """Logit scale s, excess loss, exponents p = -dlog L/dlog t and dlog s/dlog t of the aligned noiseless flow, hard labels."""

    from odescale import integrate, peaked

    trajectory = integrate(peaked(classes=classes, labels="hard", noise=0), t1=1e6, points=600)
    scale = np.asarray(trajectory.observables["logit_scale"])
    late = trajectory.t > 0
    growth = np.gradient(np.log(scale[late]), np.log(trajectory.t[late]))
    return {"s": scale[late], "loss": trajectory.loss[late], "exponent": trajectory.exponent[late], "growth": growth}


def own_flow(grammar: Any, sequences: int = 8192) -> dict[str, np.ndarray]:
    r"""The same for the language's own fields f: L(s) = E log sum_k exp(s (f_k - f_top)), ds/dt = -L'(s), s(0) = 0.

    What the aligned flow is when the averages over Gaussian fields are replaced by averages over contexts.
    """
    import jax

    from odescale.training.language_probe import true_fields

    _, fields = true_fields(grammar, grammar.sample(jax.random.key(54321), sequences))
    below = np.asarray(fields.max(-1, keepdims=True) - fields, np.float32).reshape(-1, grammar.vocabulary)
    s = np.concatenate([np.linspace(0, 2, 41), np.geomspace(2.05, 30, 80)])
    loss, slope = np.empty_like(s), np.empty_like(s)
    for i, scale in enumerate(s):
        weights = np.exp(-scale * below)
        total = weights.sum(axis=1, dtype=float)
        loss[i], slope[i] = np.log(total).mean(), ((below * weights).sum(axis=1, dtype=float) / total).mean()
    t = np.concatenate([[0.0], np.cumsum(np.diff(s) * 0.5 * (1 / slope[1:] + 1 / slope[:-1]))])[1:]
    s, loss, slope = s[1:], loss[1:], slope[1:]
    return {"s": s, "loss": loss, "exponent": t * slope**2 / loss, "growth": t * slope / s}


def anneal(run: Any, grammar: Any, name: str) -> dict[str, Any]:
    """The runs' models after a tenth more steps in which the learning rate falls linearly to zero; fresh data."""
    from odescale import train
    from odescale.language import language

    training = CASES[name].training
    steps = int(run.step[-1]) // 10
    models = iter([run.model[0], *run.model])  # the first is only looked at
    calmed = language(
        lambda key: next(models), grammar, batch=training["batch"], learning_rate=training["learning_rate"],
        optimizer=training.get("optimizer", "sgd"), schedule=lambda step: 1 - step / steps,
    )  # fmt: skip
    done = train(calmed, steps, record_times=[steps], seeds=[1000 + int(seed) for seed in run.seeds])
    return {"annealed": done, "loss": float(done.mean()[-1]), "error": float(done.mean("error")[-1])}


def compare_with_flow(run: Any, flow: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> dict[str, float]:
    """Slopes over the last decade of steps, of the run and of the flows at the run's logit scales (mean over record steps)."""
    from odescale.analysis.phases.exponents import tail_exponent

    window = (run.step[-1] / 10, float(run.step[-1]))
    inside = run.step >= window[0]
    scale = run.mean("logit_scale")[inside]
    loss = tail_exponent(run.step, run.records["loss"], window=window)
    growth = tail_exponent(run.step, run.records["logit_scale"], window=window)

    def at(flow: dict[str, np.ndarray], name: str) -> float:
        return float(np.interp(np.log(scale), np.log(flow["s"]), flow[name]).mean())

    return {
        "exponent": loss.exponent,
        "exponent_stderr": loss.stderr,
        "flow_exponent": at(flow, "exponent"),
        "own_exponent": at(own, "exponent"),
        "difference": loss.exponent - at(flow, "exponent"),
        "growth": -growth.exponent,
        "growth_stderr": growth.stderr,
        "flow_growth": at(flow, "growth"),
        "own_growth": at(own, "growth"),
        "scale_from": float(scale[0]),
        "scale_to": float(scale[-1]),
    }


def boundary_layer(models: Any, grammar: Any, sequences: int = 4096) -> dict[str, Any]:
    r"""The two top classes at contexts with a small top gap: slope D_b of the logit gap against the true one, spread Delta_b.

    Var(logit gap | true gap) = 2 Delta_b in the theory, where Delta is the same for all directions; a network's spread may sit
    in the logits of classes that never win. `loss_predicted`: excess loss of D_b f + sqrt(Delta_b) normal noise on the contexts.
    """
    import jax
    import jax.numpy as jnp

    from odescale.training.language_probe import excess_losses, true_fields

    tokens = grammar.sample(jax.random.key(12345), sequences)
    log_true, fields = true_fields(grammar, tokens)
    order = jnp.argsort(fields, axis=-1)[..., -2:]
    gap = np.diff(np.asarray(jnp.take_along_axis(fields, order, -1)), axis=-1).ravel()
    near = gap < BOUNDARY
    rows = []
    for model in models:
        logits = jax.jit(jax.vmap(model))(tokens[:, :-1])[:, grammar.order - 1 :].astype(fields.dtype)
        difference = np.diff(np.asarray(jnp.take_along_axis(logits, order, -1)), axis=-1).ravel()
        slope = float(gap[near] @ difference[near] / (gap[near] @ gap[near]))
        spread = float(np.mean((difference[near] - slope * gap[near]) ** 2) / 2)
        noise = jax.random.normal(jax.random.key(1), fields.shape, fields.dtype)
        predicted = excess_losses(log_true, slope * fields + spread**0.5 * noise).mean()
        rows.append((slope, spread, float(predicted), float(excess_losses(log_true, logits).mean())))
    names = ("boundary_overlap", "boundary_spread", "loss_predicted", "loss")
    each = dict(zip(names, np.transpose(rows).tolist(), strict=True))
    return {"gap_density": float((gap < 0.05).mean() / 0.05), "seeds": each} | {
        k: float(np.mean(v)) for k, v in each.items()
    }


def readout_alone(
    model: Any, grammar: Any, flow: dict[str, np.ndarray], rate: float = 2.0, steps: int = 1000
) -> dict[str, float]:
    """The unembedding alone trained from zero by full-batch descent on frozen features: the theory's model on real features.

    37 000 contexts; the exponent of the excess loss on other contexts over the last decade of steps, and the flow's at the same s.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from odescale.training.language_probe import measure_language

    tokens = grammar.sample(jax.random.key(777), 4096)
    held_out = grammar.sample(jax.random.key(778), 1024)
    features = jax.jit(jax.vmap(model.features))(tokens[:, :-1])[:, grammar.order - 1 :].reshape(-1, model.width)
    labels = jax.nn.one_hot(tokens[:, grammar.order :].reshape(-1), grammar.vocabulary, dtype=features.dtype)

    @jax.jit
    def descend(weights: Any, count: Any) -> Any:
        def step(_: Any, w: Any) -> Any:
            return w - rate * (jax.nn.softmax(features @ w.T) - labels).T @ features / len(labels)

        return jax.lax.fori_loop(0, count, step, weights)

    weights, at, rows = jnp.zeros_like(model.unembedding), 0, []
    for target in np.unique(np.geomspace(steps / 10, steps, 9).astype(int)):
        weights, at = descend(weights, target - at), target
        probe = measure_language(eqx.tree_at(lambda m: m.unembedding, model, weights), grammar, held_out)
        rows.append((at, float(probe.logit_scale), float(probe.loss), float(probe.aligned_loss)))
    step, scale, loss, aligned = np.transpose(rows)
    return {
        "exponent": float(-np.polyfit(np.log(step), np.log(loss), 1)[0]),
        "flow_exponent": float(np.interp(np.log(scale), np.log(flow["s"]), flow["exponent"]).mean()),
        "growth": float(np.polyfit(np.log(step), np.log(scale), 1)[0]),
        "flow_growth": float(np.interp(np.log(scale), np.log(flow["s"]), flow["growth"]).mean()),
        "scale_from": float(scale[0]), "scale_to": float(scale[-1]), "loss": float(loss[-1]), "aligned_loss": float(aligned[-1]),
    }  # fmt: skip


def verdict(numbers: dict[str, float]) -> str:
    """Within the tolerance of the acceptance, outside, or undecided where the seeds scatter by more than the tolerance."""
    if numbers["exponent_stderr"] > TOLERANCE:
        return "undecided, seeds scatter"
    return f"{'within' if abs(numbers['difference']) <= TOLERANCE else 'outside'} {TOLERANCE}"


def report(name: str, run: Any, grammar: Any, flow: dict[str, np.ndarray]) -> dict[str, Any]:
    """All numbers of a case, printed as a block."""
    own = own_flow(grammar)
    numbers, layer = compare_with_flow(run, flow, own), boundary_layer(run.model, grammar)
    annealed = anneal(run, grammar, name)
    models = annealed.pop("annealed").model
    calm, readout = boundary_layer(models, grammar), readout_alone(models[0], grammar, flow)
    D, s = run.mean("overlap")[-1], run.mean("logit_scale")[-1]
    mean_top = mean_of_top(grammar.vocabulary)
    # The theory's loss at the measured pair is F(s) - D m: the aligned loss at s, and m for every unit of s - D.
    isotropic = float(np.interp(s, flow["s"], flow["loss"]) + (s - D) * mean_top)
    print(f"\n{name}: {CASES[name].what}; {len(run.seeds)} seeds, {run.step[-1]} steps")
    print("     step   excess loss         error   s       D       Delta   L/L_aligned  |grad|")
    for i in np.unique(np.searchsorted(run.step, np.geomspace(run.step[0], run.step[-1], 13))):
        cells = [run.mean(key)[i] for key in ("error", "logit_scale", "overlap", "spread")]
        print(
            f"  {run.step[i]:7d}   {run.mean('loss')[i]:.4f} +- {run.scatter('loss')[i]:.4f}   "
            + "  ".join(f"{cell:6.3f}" for cell in cells)
            + f"   {run.mean('loss')[i] / run.mean('aligned_loss')[i]:6.3f}     {run.mean('gradient_norm')[i]:.4f}"
        )
    print(
        f"  last decade, s from {numbers['scale_from']:.2f} to {numbers['scale_to']:.2f}:\n"
        f"    -dlog L/dlog t  {numbers['exponent']:.3f} +- {numbers['exponent_stderr']:.3f}; flow at the same s: Gaussian "
        f"{numbers['flow_exponent']:.3f} ({verdict(numbers)}), own fields {numbers['own_exponent']:.3f}\n"
        f"     dlog s/dlog t  {numbers['growth']:.3f} +- {numbers['growth_stderr']:.3f}; Gaussian {numbers['flow_growth']:.3f}, "
        f"own fields {numbers['own_growth']:.3f}"
    )
    for when, at in (("end", layer), ("learning rate taken to zero", calm)):
        print(
            f"  boundary layer, {when}: D_b = {at['boundary_overlap']:.2f}, Delta_b = {at['boundary_spread']:.2f}; loss predicted "
            f"from them {at['loss_predicted']:.4f}, measured {at['loss']:.4f}"
        )
    print(
        f"  gap density {layer['gap_density']:.3f} (Gaussian: m_K = {mean_top:.3f}); F(s) - D m = {isotropic:.4f} with the whole "
        f"Delta isotropic; after the learning rate went to zero the loss is {annealed['loss']:.4f}, "
        f"the error {annealed['error']:.4f}",
        flush=True,
    )
    print(
        f"  readout alone on the features of seed 0 after that, s from {readout['scale_from']:.2f} to {readout['scale_to']:.2f}: "
        f"-dlog L/dlog t {readout['exponent']:.3f}, flow {readout['flow_exponent']:.3f}; dlog s/dlog t {readout['growth']:.3f}, "
        f"flow {readout['flow_growth']:.3f}; L = {readout['loss']:.4f}, aligned {readout['aligned_loss']:.4f}",
        flush=True,
    )
    return {
        "case": CASES[name]._asdict(),
        "numbers": numbers,
        "boundary_layer": layer,
        "boundary_layer_annealed": calm,
        "annealed": annealed,
        "readout_alone": readout,
        "isotropic_loss": isotropic,
        "step": run.step.tolist(),
        "records": {key: values.tolist() for key, values in run.records.items()},
    }


def mean_of_top(classes: int) -> float:
    """m_K = E max of K standard normals = int x d[Phi(x)^K]."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return quad(lambda x: x * classes * norm.pdf(x) * norm.cdf(x) ** (classes - 1), -9, 9, epsabs=1e-12, limit=200)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CASES), default=tuple(CASES), metavar="CASE", help=", ".join(CASES)
    )
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    start, results = time.perf_counter(), {}
    trained = {name: train_case(name) for name in arguments.only}
    print(f"training or reading checkpoints: {time.perf_counter() - start:.0f} s")
    flow = aligned_flow(LANGUAGE["vocabulary"])
    for name, (grammar, run) in trained.items():
        results[name] = report(name, run, grammar, flow)
    target = FOLDER / "peaked_language.json"
    if target.exists():  # cases that were not asked for keep their numbers
        results = json.loads(target.read_text()) | results
    target.write_text(json.dumps(results, indent=1, default=str) + "\n")
    print(f"{target.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
