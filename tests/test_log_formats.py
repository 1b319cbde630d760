# ruff: noqa: E501
"""Printed logs of many projects: shapes taken from what the projects' own sources print, numbers synthetic."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odescale import InputError, read_log

STEPS = np.arange(10, 210, 10)
LOSSES = np.round(2.5 + 8.0 * STEPS**-0.4, 4)
RATES = np.round(3e-4 * (1 - STEPS / 250), 8)
MUTATED = int(os.environ.get("ODESCALE_MUTATED_LOGS", "5"))
"""Mutated files of each format and seed; 50 make more than 3000."""
NOISE = (
    "W1201 00:00:{s:02d}.0 {s} torch/run.py:779] a warning of the launcher",
    "|   {s}  NVIDIA H100 80GB HBM3   On | 00000000:4C:00.0 Off |   0 |",
    "[rank{s}]: UserWarning: grad strides do not match, at line {s}",
    "    x = norm(x) + {s} * self.scale  # step of the residual",
    "saving checkpoint {s} to /tmp/ckpt-{s}.pt",
    "NCCL INFO Channel {s:02d}/32 :    0   1   2   3",
    "",
)


def lines(text: str | Callable[[int, float, float], str]) -> list[str]:
    """The line of every step."""
    write = text if callable(text) else lambda s, x, r: text.format(s=s, x=x, r=r, e=s / 100, k=s / 1000)
    return [write(int(s), float(x), float(r)) for s, x, r in zip(STEPS, LOSSES, RATES, strict=True)]


def deepspeed(s: int, x: float, r: float) -> str:
    head = "[2031-01-02 03:04:05,006] [INFO] "
    return f"{head}[logging.py:96:log_dist] [Rank 0] step={s}, skipped=0, lr=[{r}, {r}], mom=[(0.9, 0.95), (0.9, 0.95)]\n" \
           f"steps: {s} loss: {x:0.4f} iter time (s): 0.103 samples/sec: 77.5"  # fmt: skip


def olmo_core(s: int, x: float, r: float) -> str:
    return (
        f"2031-01-02 03:04:05.006\thost:0\tolmo_core.train.callbacks.console_logger:94\tINFO\t[step={s}/200,epoch=1,eta=10s]\n"
        f"    optim/LR (group 0)={r:.2E}\n    optim/total grad norm=0.5\n    train/CE loss={x:.4f}\n    train/PPL={np.exp(x):.1f}"
    )


def fairseq(s: int, x: float, r: float) -> str:
    entry = {
        "epoch": 1,
        "update": round(s / 1000, 3),
        "loss": f"{x}",
        "ppl": "9",
        "num_updates": str(s),
        "lr": f"{r}",
        "gnorm": "1.2",
    }
    line = f"2031-01-02 03:04:05 | INFO | train_inner | {json.dumps(entry)}"
    if s % 100 == 0:
        line += f'\n2031-01-02 03:04:05 | INFO | valid | {{"epoch": 1, "valid_loss": "{x + 1}", "valid_num_updates": "{s}"}}'
        line += f'\n2031-01-02 03:04:05 | INFO | train | {{"epoch": 1, "train_loss": "{x + 2}", "train_num_updates": "{s}"}}'
    return line


def keras_bar(s: int, x: float, r: float) -> str:
    return f"\r {s}/200 {'━' * 10} 1s 5ms/step - accuracy: 0.3125 - loss: {x:.4f}"


# project: (line or lines of a step, column of the loss, whether a rate is read)
FORMATS: dict[str, tuple[str | Callable[[int, float, float], str], str, bool]] = {
    "nanoGPT": ("iter {s}: loss {x:.4f}, time 31.62ms, mfu 3.1%", "loss", False),
    "nanochat": ("step {s:05d}/00200 (5.00%) | loss: {x:.4f} | lrm: {r:.8f} | dt: 9.10ms | tok/sec: 1,234,567 | mfu: 40.1", "loss", True),
    "build-nanogpt": ("{s} train {x:.4f}", "train_loss", False),
    "modded-nanogpt": ("step:{s}/200 train_loss:{x:.4f} train_time:8358ms step_avg:200.01ms", "train_loss", False),
    "llm.c main.log": ("s:{s} trl:{x:.4f} lr:{r:.8f} norm:1.05", "train_loss", True),
    "llm.c console": ("step {s:4d}/200 | loss {x:.4f} (+0.12z)| norm 0.40 (-1.2z)| lr {r:.2e} | 210 ms | 40.0% bf16 MFU | 250000 tok/s", "loss", True),
    "torchtitan": (
        "[rank0]:[titan] 2031-01-02 03:04:05,006 - root - INFO - \x1b[31mstep: {s:2}  \x1b[32mloss: {x:7.4f}  \x1b[38;2;180;60;0mgrad_norm:  1.2"
        "  \x1b[33mmemory: 11.00GiB(22.00%)  \x1b[34mtps: 1,234  \x1b[36mtflops: 4.10  \x1b[35mmfu: 12.30%\x1b[39m", "loss", False),
    "MaxText": ("I0101 01:02:03.000004 140 metric_logger.py:99] completed step: {s}, seconds: 0.500, TFLOP/s/device: 111.000, "
                "Tokens/s/device: 2222.000, total_weights: 33333, loss: {x:.4f}", "loss", False),
    "OLMo": ("[2031-01-02 03:04:05] INFO     [olmo.train:816, rank=0] [step={s}/200]\n    train/CrossEntropyLoss={x:.4f}\n"
             "    train/Perplexity=19,188\n    throughput/total_tokens=41,943,040\n    optim/learning_rate_group0={r}",
             "train/CrossEntropyLoss", True),
    "OLMo-core": (olmo_core, "train/CE loss", True),
    "Levanter": ("2031-01-02T03:04:05 - 0 - tqdm_logging.py:81 - INFO :: Progress on:train {s}.0it/200it rate:1.2it/s remaining:1:00:00 "
                 "elapsed:10:00 postfix:loss={x:.4f}", "loss", False),
    "Hugging Face dict": ("{{'loss': {x}, 'grad_norm': 1.9, 'learning_rate': {r}, 'epoch': {e}, 'step': {s}}}", "loss", True),
    "Hugging Face strings": ("{{'loss': '{x}', 'grad_norm': '1.9', 'learning_rate': '{r}', 'epoch': '{e}', 'step': '{s}'}}", "loss", True),
    "tqdm": ("\rTraining:  5%|###   | {s}/200 [00:10<01:00, 20.1it/s, loss={x:.4f}, lr={r:.2e}]", "loss", True),
    "Lightning": ("\rEpoch 0:  50%|█████     | {s}/200 [00:05<00:05, 19.9it/s, v_num=3, train_loss={x:.4f}]", "train_loss", False),
    "clu": ("I0101 01:02:03.000004 140 logging_writer.py:48] [{s}] learning_rate={r:.6g}, steps_per_sec=3.1, train_loss={x:.6g}", "train_loss", True),
    "Keras": (keras_bar, "loss", False),
    "fairseq": (fairseq, "loss", True),
    "DeepSpeed": (deepspeed, "loss", True),
    "NeMo": ("Training epoch 0, iteration {s}/199 | lr: {r} | global_batch_size: 8 | global_step: {s} | reduced_train_loss: {x:.4f} | "
             "train_step_timing in s: 12.3 | consumed_samples: 800", "reduced_train_loss", True),
    "Megatron": (" [2031-01-02 03:04:05] iteration {s:8d}/     200 | consumed samples:       2560 | elapsed time per iteration (ms): 1234.5 | "
                 "learning rate: {r:.6E} | global batch size:   256 | lm loss: {x:.6E} | loss scale: 1.0 | grad norm: 10.2 | "
                 "number of skipped iterations:   0 |", "lm loss", True),
}  # fmt: skip


def check(path: Path, project: str) -> None:
    """Steps, losses and rates are those that were written."""
    _, column, rated = FORMATS[project]
    log = read_log(path)
    assert dict(log.columns)["loss"] == column
    np.testing.assert_array_equal(log.step, STEPS)
    np.testing.assert_allclose(log.loss, LOSSES, rtol=1e-4)
    assert (log.learning_rate is not None) == rated
    if log.learning_rate is not None:
        np.testing.assert_allclose(log.learning_rate, RATES, rtol=6e-3)


@pytest.mark.parametrize("project", FORMATS)
def test_a_format_is_read(tmp_path: Path, project: str) -> None:
    path = tmp_path / "run.log"
    path.write_text("\n".join(lines(FORMATS[project][0])) + "\n")
    check(path, project)


@pytest.mark.parametrize("project", FORMATS)
@pytest.mark.parametrize("place", ["before", "between"])
def test_noise_changes_nothing_but_a_note(tmp_path: Path, project: str, place: str) -> None:
    rng = np.random.default_rng(0)
    noise = [NOISE[rng.integers(len(NOISE))].format(s=rng.integers(100)) for _ in range(300)]
    records = lines(FORMATS[project][0])
    if place == "before":
        mixed = noise + records
    else:
        mixed = [line for i, record in enumerate(records) for line in (*noise[15 * i : 15 * i + 15], record)]
    path = tmp_path / "run.log"
    path.write_text("\n".join(mixed) + "\n")
    check(path, project)


@pytest.mark.parametrize("place", ["before", "between"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_noise_around_tables_and_objects(tmp_path: Path, kind: str, place: str) -> None:
    rng = np.random.default_rng(1)
    noise = [NOISE[rng.integers(len(NOISE))].format(s=rng.integers(100)) for _ in range(300)]
    if kind == "csv":
        head, records = ["step,loss,lr"], [f"{s},{x},{r}" for s, x, r in zip(STEPS, LOSSES, RATES, strict=True)]
    else:
        rows = zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True)
        head, records = [], [json.dumps({"step": s, "loss": x, "lr": r}) for s, x, r in rows]
    if place == "before":
        mixed = noise + head + records
    else:
        mixed = head + [line for i, record in enumerate(records) for line in (*noise[15 * i : 15 * i + 15], record)]
    path = tmp_path / f"run.{kind}"
    path.write_text("\n".join(mixed) + "\n")
    log = read_log(path)
    assert log.step.tolist() == STEPS.tolist() and log.loss.tolist() == LOSSES.tolist()
    assert log.learning_rate is not None and log.learning_rate.tolist() == RATES.tolist()
    assert any("left out" in note or "read" in note for note in log.notes)


def test_several_rates_are_named_and_one_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text(
        "step,loss,lr/embed,lr/hidden\n"
        + "".join(f"{s},{x},{r},{r / 3}\n" for s, x, r in zip(STEPS, LOSSES, RATES, strict=True))
    )
    log = read_log(path)
    assert log.learning_rate is None and any("lr/embed, lr/hidden look like rates" in note for note in log.notes)
    chosen = read_log(path, learning_rate="lr/hidden")
    assert chosen.learning_rate is not None and np.allclose(chosen.learning_rate, RATES / 3)


def test_an_accuracy_is_never_a_loss_and_validation_is_a_series_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    rows = [
        f"{s} train {x}\n" + (f"{s} val {x + 0.1}\n{s} hella 0.25\n" if s % 50 == 0 else "")
        for s, x in zip(STEPS, LOSSES, strict=True)
    ]
    path.write_text("".join(rows))
    assert read_log(path).loss.tolist() == LOSSES.tolist()
    assert read_log(path, loss="val_loss").step.tolist() == [50, 100, 150, 200]
    only = tmp_path / "hella.txt"
    only.write_text("".join(f"{s} hella {0.25 + s / 1000}\n" for s in STEPS))
    with pytest.raises(InputError, match="loss"):
        read_log(only)


@pytest.mark.parametrize(
    ("name", "column", "option", "per"),
    [("tokens", STEPS * 4096, "batch_tokens", 4096), ("consumed_samples", STEPS * 8, "batch_samples", 8),
     ("epoch", STEPS / 100, "steps_per_epoch", 100), ("total_flops", STEPS * 3e9, "step_flops", 3e9),
     ("accuracy", STEPS / 1000, "steps_per_row", 10)],
)  # fmt: skip
def test_other_clocks_are_converted_and_said(
    tmp_path: Path, name: str, column: np.ndarray, option: str, per: float
) -> None:
    path = tmp_path / "run.csv"
    path.write_text(f"{name},loss\n" + "".join(f"{t},{x}\n" for t, x in zip(column, LOSSES, strict=True)))
    with pytest.raises(InputError) as refused:
        read_log(path)
    assert option in str(refused.value)
    log = read_log(path, **{option: per})
    assert np.allclose(log.step, STEPS) and any(f"{option} = {per:g}" in note for note in log.notes)
    # Never tokens as they stand, and no option that changes nothing.
    if option in ("batch_tokens", "batch_samples", "step_flops"):
        with pytest.raises(InputError, match=option):
            read_log(path, step=name)
    path.write_text("step,loss\n" + "".join(f"{s},{x}\n" for s, x in zip(STEPS, LOSSES, strict=True)))
    if option != "batch_tokens":
        with pytest.raises(InputError, match=option):
            read_log(path, **{option: per})


def test_epochs_of_keras_count_from_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("epoch,accuracy,loss,lr\n" + "".join(f"{i},0.3,{x},1e-3\n" for i, x in enumerate(LOSSES)))
    log = read_log(path, steps_per_epoch=10)
    assert log.step.tolist() == STEPS.tolist() and any("end of its epoch" in note for note in log.notes)


def test_the_console_of_a_trainer_without_steps_counts_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    rows = [
        f"{{'loss': {x}, 'learning_rate': {r}, 'epoch': {i / 50}}}\n"
        for i, (x, r) in enumerate(zip(LOSSES, RATES, strict=True))
    ]
    rows.insert(5, "{'eval_loss': 9.9, 'epoch': 0.1}\n")
    path.write_text("".join(rows) + "{'train_runtime': 12.1, 'train_loss': 4.4, 'epoch': 0.4}\n")
    log = read_log(path)
    assert log.step.tolist() == list(range(1, 21)) and log.loss.tolist() == LOSSES.tolist()
    assert any("no step logged" in note and "--steps-per-row" in note for note in log.notes)
    assert read_log(path, steps_per_row=10).step.tolist() == STEPS.tolist()
    assert np.allclose(read_log(path, step="epoch", steps_per_epoch=500).step, 10 * np.arange(20))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to four cuts, doublings, exchanges or insertions."""
    for _ in range(rng.integers(1, 5)):
        a, b = sorted(rng.integers(0, len(data) + 1, 2))
        kind = rng.integers(6)
        if kind == 0:
            data = data[:a] + data[b:] if b - a < len(data) // 2 else data[:b]
        elif kind == 1:
            data = data[:b] + data[a : a + 200] + data[b:]
        elif kind == 2:
            data = data[:a] + bytes(rng.integers(0, 256, 3).astype(np.uint8)) + data[a + 3 :]
        elif kind == 3:
            data = (
                data[:a]
                + rng.choice(np.array([b"\n", b"\r", b"{", b"[", b"nan", b"-", b",", b"=", b"\x1b[31m", b"1e999"]))
                + data[a:]
            )
        elif kind == 4:
            data = b"\n".join(rng.permutation(np.array(data.split(b"\n"), dtype=object)))
        else:
            data = data.replace(b":", b"=", int(rng.integers(1, 50)))
    return data


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_read_or_refused_in_one_line_within_a_second(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "run.log"
    for project in FORMATS:
        for _ in range(MUTATED):
            path.write_bytes(mutated(("\n".join(lines(FORMATS[project][0])) + "\n").encode(), rng))
            began = time.process_time()
            try:
                log = read_log(path)
                assert np.isfinite(log.loss).all() and (np.diff(log.step) > 0).all()
            except InputError as refused:
                assert "\n" not in str(refused)
            assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("name", "scale", "flag"), [("tokens", 4096, "--batch-tokens"), ("epoch", 0.01, "--steps-per-epoch")]
)
def test_the_command_line_has_the_option_that_its_error_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, scale: float, flag: str
) -> None:
    from odescale.cli.main import main

    path = tmp_path / "run.csv"
    steps = np.arange(10, 1010, 10)
    path.write_text(f"{name},loss\n" + "".join(f"{s * scale:.12g},{2.5 + 8 * s**-0.4}\n" for s in steps))
    command = ["report", str(path), "--out", str(tmp_path / "page"), "--json"]
    assert main(command) == 2
    assert f"({flag} " in capsys.readouterr().err
    assert main([*command, flag, f"{scale if name == 'tokens' else 1 / scale:g}"]) == 0
    assert np.allclose(json.loads(capsys.readouterr().out)["t"], steps)


SHARED = Path(os.environ.get("ODESCALE_DATA", Path(__file__).resolve().parents[1] / "../shared/data")) / "logs"
# file: (column of the step, of the loss, of the rate, points, first and last step)
CASES: dict[str, tuple[str, str, str | None, int, float, float]] = {
    "llmc_main.log": ("step", "train_loss", "lr", 400, 10, 4000),
    "modded_long_preamble.txt": ("step", "train_loss", None, 400, 10, 4000),
    "warnings_preamble_nanogpt.log": ("iter", "loss", None, 400, 10, 4000),
    "buildnanogpt_log.txt": ("step", "train_loss", None, 400, 10, 4000),
    "hf_console.log": ("row", "loss", "learning_rate", 400, 1, 400),
    "olmo_console.log": ("step", "train/CrossEntropyLoss", "optim/learning_rate_group0", 400, 10, 4000),
    "torchtitan_ansi.log": ("step", "loss", None, 400, 10, 4000),
    "maxtext.log": ("completed step", "loss", None, 400, 10, 4000),
    "tqdm_cr.log": ("step", "loss", "lr", 400, 10, 4000),
    "multi_lr_groups.csv": ("step", "loss", None, 400, 10, 4000),
    "nanochat_lrm.csv": ("step", "train/loss", "train/lrm", 400, 10, 4000),
    "resume_epochs_reset.csv": ("step", "loss", "lr", 500, 10, 5000),
    "finetune_trainer_state.json": ("step", "loss", "learning_rate", 200, 20, 4000),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside this checkout")
def test_the_cases_of_the_collection_are_read_as_it_says() -> None:
    for name, (step, loss, rate, points, first, last) in CASES.items():
        log = read_log(SHARED / name)
        columns = dict(log.columns)
        assert (columns["step"], columns["loss"], columns.get("learning_rate")) == (step, loss, rate), name
        assert (log.step.size, log.step[0], log.step[-1]) == (points, first, last), name
        assert log.loss[0] > log.loss[-1] and log.loss[-1] > 1, name
    assert any("4000 added" in note for note in read_log(SHARED / "resume_epochs_reset.csv").notes)
    for name, words in (
        ("keras_training.csv", "steps_per_epoch"), ("table_CNDL.csv", "finished runs"), ("table_isoflop.csv", "finished runs"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_log(SHARED / name)
