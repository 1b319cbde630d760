"""Does the slow map hold? Checks of the standardised innovations of its fit, and what they say in words."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import special, stats

CHECKED = 0.01  # a check speaks below this chance, shared by all of them
WORDS = {
    "memory": "what the map misses stays for several steps",
    "delta": "delta changes along the run",
    "relaxation": "the approach within a step changes along the run (r or kappa_inf)",
    "exponential": "the approach is not exponential in the idle units",
}


def checks_of(shocks: Float[np.ndarray, "n 2"], idle: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Chances under the map: innovations are then independent, of variance one, and know neither the time nor the idle units."""
    n = len(shocks)
    place = np.arange(n) - (n - 1) / 2
    lags = min(10, n // 5)
    z = shocks[1:, 0] - shocks[1:, 0].mean()
    memory = np.array([z[k:] @ z[:-k] for k in range(1, lags + 1)]) / (z @ z)
    box = z.size * (z.size + 2) * np.sum(memory**2 / (z.size - np.arange(1, lags + 1)))
    found = {
        "memory": float(stats.chi2.sf(box, lags)),
        "delta": _slope(shocks[1:, 0], place[1:]),
        "relaxation": _slope(shocks[:, 1], place),
    }
    degree = min(np.unique(idle).size - 1, 4)
    if degree > 1:
        # A wrong r shows in the first power; a wrong shape in those above.
        shape = np.linalg.qr(np.vander(idle / idle.max(), degree + 1, increasing=True))[0][:, 2:]
        found["exponential"] = float(
            stats.chi2.sf(np.sum((shape.T @ shocks[:, 1]) ** 2) / shocks[:, 1].var(), degree - 1)
        )
    return found


def _slope(z: Float[np.ndarray, " n"], along: Float[np.ndarray, " n"]) -> float:
    along = along - along.mean()
    t = (z - z.mean()) @ along / (np.linalg.norm(along) * z.std())
    return float(2 * special.ndtr(-abs(t)))


def words_of(checks: dict[str, float], identified: bool) -> str:
    """The verdict: which checks fail, and whether r is told."""
    seen = [f"{WORDS[name]} (chance {p:.1g})" for name, p in checks.items() if p < CHECKED / len(checks)]
    told = "the map holds as far as these steps tell" if not seen else "the map does not hold: " + "; ".join(seen)
    return told if identified else told + "; r and kappa_inf cannot be told apart: vary the idle units"
