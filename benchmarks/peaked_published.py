"""`python -m benchmarks.peaked_published`: slopes of the aligned student against the published ones, no parameter fitted.

128 classes, T = 0.01, student inverse temperatures linspace(0, 1, 100)/T. The published numbers are means over random inputs and
weights; here they come from the tables of the closure, averaged over the length of 32 inputs.
"""

from __future__ import annotations

PUBLISHED = {"gradient": (-2.26147, 0.0104), "loss": (-1.15062, 0.0406)}


def rows() -> list[tuple[str, str, float, float, float]]:
    """(quantity, inputs, slope, published slope, published standard error)."""
    from benchmarks.peaked_data import GRADIENT_POINTS, LOSS_POINTS, aligned_gradient_curve

    found = []
    for normalised in (False, True):
        curve = aligned_gradient_curve(normalised=normalised)
        kind = "length sqrt(32)" if normalised else "Gaussian"
        for name, points in (("gradient", GRADIENT_POINTS), ("loss", LOSS_POINTS)):
            found.append((name, kind, curve.slope(name, points)[0], *PUBLISHED[name]))
    return found


def main() -> None:
    """Prints the table."""
    import jax

    jax.config.update("jax_enable_x64", True)
    print(
        "| log-log slope against b | inputs | closure | published | (closure - published)/error |\n|---|---|---|---|---|"
    )
    for name, kind, slope, published, error in rows():
        print(f"| {name} | {kind} | {slope:.5f} | {published} +- {error} | {(slope - published) / error:+.2f} |")


if __name__ == "__main__":
    main()
