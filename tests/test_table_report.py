"""The page of a table of runs: its sizes are those of the law behind the table, its doubts are said, the command line makes it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import odescale
from odescale import InputError
from odescale.cli.main import main
from odescale.compare.table_report import report_table
from odescale.laws import optimum, scaling_table
from odescale.plot import plot

TRUE = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}
BUDGETS = np.geomspace(1e19, 1e22, 6)


def loss_of(N, D):
    return TRUE["E"] + TRUE["A"] / N ** TRUE["alpha"] + TRUE["B"] / D ** TRUE["beta"]


def isoflop_table(noise=0.002, spoiled=0, seed=0):
    rng = np.random.default_rng(seed)
    best = optimum(TRUE, BUDGETS).params.value
    N = (best[:, None] * np.geomspace(0.3, 3.3, 9)).reshape(-1)
    C = np.repeat(BUDGETS, 9)
    loss = loss_of(N, C / (6 * N)) * np.exp(noise * rng.standard_normal(N.size))
    loss[:spoiled] *= 1.3
    return scaling_table(params=N, flop=C, loss=loss)


def as_csv(path, table, names=("n_params", "train_flop", "val_loss")):
    rows = [",".join(names), *(f"{n!r},{c!r},{v!r}" for n, c, v in zip(
        table.params.tolist(), table.flop.tolist(), table.loss.tolist(), strict=True))]  # fmt: skip
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def report():
    return report_table(isoflop_table(), forms="chinchilla", compute=[1e22, 1e24], bootstrap=400, level=0.99)


def test_sizes_and_approaches_hold_the_truth(report):
    # Intervals at 99 %: nine of them must hold at once.
    true = optimum(TRUE, [1e22, 1e24])
    for name in ("params", "tokens", "loss"):
        held, expected = getattr(report.best, name), getattr(true, name).value
        assert np.all((held.low < expected) & (expected < held.high)), name
    a = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])
    for way in (report.approaches.envelope, report.approaches.parabola, report.approaches.law):
        assert way.interval[0] < a < way.interval[1], way.name
    assert report.trimmed is None and report.law is report.fits["chinchilla"]
    assert report.frontier.flop[0] == pytest.approx(1e19) and report.frontier.flop[-1] == pytest.approx(1e24)
    assert "100 times the largest run" in report.answers[1] and "not tested" not in report.answers[0]


def test_outliers_that_move_the_exponents_are_left_out_and_said():
    spoiled = report_table(isoflop_table(spoiled=3), forms="chinchilla", compute=1e22, bootstrap=200)
    assert spoiled.trimmed is not None and spoiled.law is spoiled.trimmed
    assert sorted(one.row for one in spoiled.fits["chinchilla"].outliers) == [0, 1, 2]
    assert any("outliers the fit is unstable" in line for line in spoiled.answers)
    true = optimum(TRUE, 1e22).params.value
    assert spoiled.best.params.low[0] < true[0] < spoiled.best.params.high[0]


def test_no_size_where_the_table_leaves_an_exponent_open():
    N = np.geomspace(1e8, 1e10, 25)
    rng = np.random.default_rng(1)
    ray = scaling_table(params=N, tokens=20 * N, loss=loss_of(N, 20 * N) * np.exp(0.002 * rng.standard_normal(25)))
    told = report_table(ray, forms="chinchilla", bootstrap=100)
    assert told.best is None and told.frontier is None and "No best size can be told" in told.answers[0]
    with pytest.raises(InputError, match="best sizes"):
        plot(told)


def test_forms_without_their_columns_are_refused_by_name():
    told = report_table(isoflop_table(), bootstrap=60)
    assert "chinchilla" in told.fits and all("has no" in why for why in told.refused.values())
    with pytest.raises(InputError, match="forms"):
        report_table(isoflop_table(), forms="nothing")
    with pytest.raises(InputError, match="compute"):
        report_table(isoflop_table(), compute=-1.0)


def test_page_has_every_number_and_the_pictures(report, tmp_path):
    page = odescale.write_report(report, tmp_path, title="runs")
    text, record = page.with_name("report.md").read_text(), json.loads(page.with_name("report.json").read_text())
    assert {path.name for path in tmp_path.glob("*.png")} == {"frontier.png", "isoflop.png", "residuals.png"}
    for answer in report.answers:
        assert answer.split(":")[0] in text
    for way in ("1, best runs", "2, parabolas", "3, fitted law"):
        assert way in text and way in record["approaches"]
    assert record["optimum"]["params"]["value"] == report.best.params.value.tolist()
    for verdict in report.verdicts:
        assert verdict.theory in text
    with pytest.raises(InputError, match="notes"):
        odescale.write_report(report, tmp_path, notes=["one"])


def test_pictures_show_the_runs(report):
    axes = plot(report.law)
    drawn = np.concatenate([line.get_xdata() for line in axes.lines if line.get_marker() == "o"])
    assert np.isin(report.table.params, drawn).all()
    panels = plot(report)
    assert panels["params"].get_xlabel() == "compute C  (FLOP)" and panels["params"].get_yscale() == "log"
    residual = plot(report.law, kind="residuals")
    np.testing.assert_allclose(
        np.sort(residual["params"].lines[1].get_ydata()), np.sort(100 * report.law.residual), rtol=1e-9
    )


def test_command_line_reads_tables_and_answers(tmp_path, capsys):
    path, out = as_csv(tmp_path / "runs.csv", isoflop_table()), tmp_path / "page"
    asked = [
        "laws",
        str(path),
        "--form",
        "chinchilla",
        "--compute",
        "1e22,1e24",
        "--bootstrap",
        "60",
        "--out",
        str(out),
    ]
    assert main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["optimum"]["flop"] == [1e22, 1e24] and record["path"] == str(out / "report.html")
    assert main([*asked, "--served", "1e13"]) == 0
    words = capsys.readouterr().out
    assert "N* ~ C^" in words and "report:" in words
    # `report` on such a file is the same page; what belongs to curves is refused by name.
    assert main(["report", str(path), "--out", str(out)]) == 0
    assert "best runs: N* ~ C^" in capsys.readouterr().out
    assert main(["report", str(path), "--step", "N", "--out", str(out)]) == 2
    assert "--step" in capsys.readouterr().err


def test_several_tables_are_joined(tmp_path, capsys):
    table, half = isoflop_table(), np.arange(54) < 27
    paths = [as_csv(tmp_path / f"{i}.csv", table.take(rows)) for i, rows in enumerate((half, ~half))]
    assert (
        main(
            [
                "laws",
                *map(str, paths),
                "--form",
                "chinchilla",
                "--bootstrap",
                "60",
                "--out",
                str(tmp_path / "o"),
                "--json",
            ]
        )
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["table"]["rows"] == 54


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--compute", "much"], "--compute"), (["--leave-out", "x"], "--leave-out"), (["--where", "a"], "--where"),
        (["--column", "batch"], "--column"), (["--form", "none"], "forms"), (["--params", "nowhere"], "nowhere"),
        (["--plot", "a.txt"], "--plot"), (["--level", "2"], "level"), (["--served", "-1"], "served"),
    ],
)  # fmt: skip
def test_bad_options_in_one_line(options, word, tmp_path, capsys):
    path = as_csv(tmp_path / "runs.csv", isoflop_table())
    assert main(["laws", str(path), "--out", str(tmp_path / "o"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error


def test_best_rate_and_critical_batch_where_the_table_has_them(tmp_path):
    """Basins of known bottoms over a grid of rates: the page tells the exponents; a table without them says nothing of it."""
    rows = []
    for N in (1e8, 3e8, 1e9):
        for D in (2e9, 8e9, 3.2e10):
            best = 3.0 * N**-0.4 * (D / 1e10) ** -0.2
            rows += [(N, D, best * f, loss_of(N, D) + 0.02 * np.log(f) ** 2) for f in (0.2, 0.4, 0.7, 1.3, 2.5, 5.0)]
    N, D, rate, loss = np.array(rows).T
    told = report_table(scaling_table(params=N, tokens=D, loss=loss, rate=rate), forms="chinchilla", bootstrap=60)
    assert told.rate is not None and told.batch is None
    page = odescale.write_report(told, tmp_path).with_name("report.md").read_text()
    assert "Learning rate and batch" in page and "variable projection" in page
    assert (
        "Learning rate and batch"
        not in odescale.write_report(report_table(isoflop_table(), forms="chinchilla", bootstrap=60), tmp_path)
        .with_name("report.md")
        .read_text()
    )
