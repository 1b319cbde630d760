"""The two-token phase map: `python -m benchmarks.phase_map` times the 200 x 200 grid, checks it, and draws docs/figures.

Each row is timed in a process of its own: cold is its first call, compilation included, the import of JAX told apart.
The check is plain Gauss-Hermite quadrature in four dimensions with all 2 x 2 weights written out, which shares no formula
with the library but the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "phase_map.png"
DIAGONAL = ((0.95, 0.05), (0.05, 0.95))
MODELS: dict[str, dict[str, Any]] = {
    "paper: sigma^2 = 0.25, A_11 = 0.6, omega = 0.3": {},
    "first order: sigma^2 = 1, A_11 = 0.95, omega = 0.6": {"variance": 1.0, "positional": DIAGONAL, "mixing": 0.6},
}


def grid(points: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axis of `points` values from -1 to 1, and (e, m) of the points in the disc."""
    axis = np.linspace(-1, 1, points)
    e, m = np.meshgrid(axis, axis, indexing="ij")
    inside = e**2 + m**2 <= 1
    return axis, e[inside], m[inside]


def direct_loss(e: float, m: float, settings: dict[str, Any], nodes: int) -> float:
    """sigma^2 E |T - S|_F^2 at length 1 by a product of four Gauss-Hermite rules."""
    from scipy.special import roots_hermitenorm

    mixing, variance = settings.get("mixing", 0.3), settings.get("variance", 0.25)
    positional = np.asarray(settings.get("positional", ((0.6, 0.4), (0.4, 0.6))))
    x, w = roots_hermitenorm(nodes)
    # Attention weights are at most one: the outermost nodes cannot add 1e-16.
    x, w = x[w > 1e-18 * w.sum()], w[w > 1e-18 * w.sum()] / w.sum()
    own = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    sigma = np.sqrt(variance)
    student = attention(sigma * own + np.array([e, -e]))
    total = 0.0
    for i, j in product(range(len(x)), repeat=2):
        other = np.array([x[i], x[j]])
        teacher = attention(sigma * (m * own + np.sqrt(max(1 - m**2, 0.0)) * other))
        gap = (1 - mixing) * teacher + mixing * positional - student
        total += w[i] * w[j] * np.einsum("a,b,abij->", w, w, gap**2)
    return float(variance * total)


def attention(fields: np.ndarray) -> np.ndarray:
    """softmax over keys of chi_a chi_b; fields (..., 2), weights (..., 2, 2)."""
    from scipy.special import softmax

    return softmax(fields[..., :, None] * fields[..., None, :], axis=-1)


def timed(model: str, accuracy: float) -> dict[str, float]:
    """Seconds of the import, of the first call and of the best of five later ones, and the largest estimated error."""
    start = time.perf_counter()
    import jax

    jax.config.update("jax_enable_x64", True)
    from odescale.two_tokens import two_token_loss

    row = {"import": time.perf_counter() - start}
    _, e, m = grid()
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        _, error = two_token_loss(e, m, **MODELS[model], accuracy=accuracy)
        seconds.append(time.perf_counter() - start)
    return row | {"cold": seconds[0], "warm": min(seconds[1:]), "estimate": float(error.max())}


def rows(accuracies: tuple[float, ...], checked: int) -> None:
    """Prints a row per model and accuracy: cold and warm time, estimated error, error against direct quadrature."""
    from odescale.two_tokens import two_token_loss

    _, e, m = grid()
    rng = np.random.default_rng(0)
    rim = np.argsort(e**2 + m**2)[-400:]
    at = np.concatenate([rng.choice(rim, checked // 2, False), rng.choice(len(e), checked - checked // 2, False)])
    # The corner cases of the series: the end of the m axis, where r = 1, and of the e axis.
    e_check, m_check = np.append(e[at], [0.0, 1.0]), np.append(m[at], [1.0, 0.0])
    # A compilation cache on disk would make the cold time warm.
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    print(f"{len(e)} points of the 200 x 200 grid with e^2 + m^2 <= 1; checked at {len(e_check)} points")
    for name, settings in MODELS.items():
        nodes = 40 if settings.get("variance", 0.25) < 0.5 else 120
        print(f"{name}\n  accuracy   import     cold       warm       estimate   checked    relative", flush=True)
        start = time.perf_counter()
        direct = np.array([direct_loss(x, y, settings, nodes) for x, y in zip(e_check, m_check, strict=True)])
        plain = (time.perf_counter() - start) / len(direct)
        for accuracy in accuracies:
            command = [sys.executable, "-m", "benchmarks.phase_map", "--row", name, str(accuracy)]
            done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout)
            loss, _ = two_token_loss(e_check, m_check, **settings, accuracy=accuracy)
            off = np.abs(loss - direct)
            print(
                f"  {accuracy:<10.0e} {row['import']:<8.2f} s {row['cold']:<8.2f} s {1e3 * row['warm']:<7.1f} ms "
                f"{row['estimate']:<10.1e} {off.max():<10.1e} {(off / direct).max():.1e}",
                flush=True,
            )
        print(f"  direct quadrature, {nodes} nodes per field, in numpy: {1e3 * plain:.0f} ms a point", flush=True)


def figure() -> None:
    """Writes docs/figures/phase_map.png: two maps, the energies of the solutions, their overlaps."""
    from odescale.plot.style import COLOURS, new_figure, shared_style
    from odescale.two_tokens import two_token_loss, two_token_minima, two_token_transition

    first = {"variance": 1.0, "positional": DIAGONAL, "accuracy": 1e-5}
    continuous = {"variance": 0.25, "positional": DIAGONAL, "accuracy": 1e-7}
    marks = {
        "semantic": ("o", COLOURS["theory"]),
        "mixed": ("D", COLOURS["third"]),
        "positional": ("s", COLOURS["run"]),
    }
    axis, e, m = grid()
    with shared_style():
        page = new_figure(11.6, 10.0)
        axes = page.subplots(2, 2)
        for panel, mixing in zip(axes[0], (0.5, 0.75), strict=True):
            values = np.full((len(axis), len(axis)), np.nan)
            inside = axis[:, None] ** 2 + axis**2 <= 1
            values[inside] = two_token_loss(e, m, mixing=mixing, **first)[0]
            image = panel.pcolormesh(axis, axis, values.T, cmap="cividis", shading="nearest", rasterized=True)
            panel.contour(axis, axis, values.T, levels=14, colors="white", linewidths=0.5, alpha=0.6)
            page.colorbar(image, ax=panel, label="test loss L  (both tokens, divided by d)", shrink=0.75)
            for rank, point in enumerate(two_token_minima(mixing=mixing, **first)):
                marker, colour = marks[point.kind]
                mirrors = np.array([(x * point.e, y * point.m) for x in (1, -1) for y in (1, -1)])
                panel.plot(
                    *mirrors.T, marker, color=colour, markersize=(11, 8)[rank], markeredgewidth=1.6, markeredgecolor="white",
                    label=f"{point.kind}, {('global', 'local')[rank]} minimum, L = {point.loss:.4f}",
                )  # fmt: skip
            panel.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
            panel.set(xlabel="positional overlap e = w.p/d", ylabel="semantic overlap m = w.w*/d")
            panel.set_title(rf"$\omega$ = {mixing},  $\sigma^2$ = 1")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9.5)
            panel.grid(False)
            panel.spines[:].set_visible(False)
        mixings = np.linspace(0, 0.98, 50)
        for panel, settings, title, meaning in (
            (axes[1, 0], first, r"$\sigma^2$ = 1: the two solutions coexist, first order", "the losses cross"),
            (axes[1, 1], continuous, r"$\sigma^2$ = 0.25: e leaves 0 continuously, then jumps", "e leaves 0"),
        ):
            found = [(w, point) for w in mixings for point in two_token_minima(mixing=float(w), **settings)]
            for kind, (marker, colour) in marks.items():
                if here := [(w, point.loss) for w, point in found if point.kind == kind]:
                    panel.plot(*zip(*here, strict=True), marker, color=colour, markersize=4.5, label=f"{kind} minimum")
            transition = two_token_transition(**settings)
            if transition is not None:
                label = rf"$\omega_c$ = {transition.mixing:.4f}: {meaning}"
                panel.axvline(transition.mixing, color=COLOURS["grey"], linestyle="--", linewidth=1.2, label=label)
            panel.set(xlabel=r"positional share $\omega$ of the teacher", ylabel="L at the local minima", title=title)
            panel.set(xlim=(0, 1), ylim=(0, None))
            panel.legend(loc="lower right")
        page.suptitle(
            r"Two-token softmax attention, $|w| = |w^*|$, positional matrix with 0.95 on its diagonal", fontsize=12.5
        )
        page.savefig(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checked", type=int, default=12, help="grid points checked by direct quadrature, half at the rim"
    )
    parser.add_argument("--no-figure", action="store_true", help="leave docs/figures/phase_map.png as it is")
    parser.add_argument("--row", nargs=2, metavar=("MODEL", "ACCURACY"), help="time one model only and print JSON")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(timed(arguments.row[0], float(arguments.row[1]))))
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    rows((1e-4, 1e-8), arguments.checked)
    if not arguments.no_figure:
        start = time.perf_counter()
        figure()
        print(f"{FIGURE.relative_to(ROOT)}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
