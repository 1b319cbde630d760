"""Readers of training logs: one hand-made file per format, right numbers out, guesses and repairs said."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from odescale import InputError, read_log, read_logs
from odescale.laws import LossCurve
from odescale.logs import TrainingLog
from odescale.logs.events import masked_crc

DATA = Path(os.environ.get("ODESCALE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))

STEPS = [0, 100, 200, 300]
LOSSES = [8.5, 5.25, 4.125, 3.75]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def said(log: TrainingLog, *words: str) -> bool:
    return all(any(word in note for note in log.notes) for word in words)


# formats


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", "  "])
def test_delimiters(tmp_path, mark):
    rows = [("step", "lr", "loss"), *zip(STEPS, [0.1, 0.2, 0.2, 0.1], LOSSES, strict=True)]
    log = read_log(write(tmp_path / "run.csv", "\n".join(mark.join(map(str, row)) for row in rows) + "\n"))
    assert log.name == "run" and log.step.tolist() == STEPS and log.loss.tolist() == LOSSES
    assert log.learning_rate is not None and log.learning_rate.tolist() == [0.1, 0.2, 0.2, 0.1]
    assert log.columns == (("step", "step"), ("loss", "loss"), ("learning_rate", "lr")) and log.notes == ()


@pytest.mark.parametrize("mark", [";", "\t"])
def test_decimal_commas_and_thousands_of_a_locale(tmp_path, mark):
    rows = [("Step", "Loss", "LR"), ("500", "4,125", "3,0e-4"), ("1.000", "3,75", "0,0003"), ("1.500", "3,5", "0,0003")]
    log = read_log(write(tmp_path / "de.csv", "\n".join(mark.join(row) for row in rows) + "\n"))
    assert log.step.tolist() == [500, 1000, 1500] and log.loss.tolist() == [4.125, 3.75, 3.5]
    assert log.learning_rate is not None and np.allclose(log.learning_rate, 3e-4, rtol=1e-15)
    assert said(log, "decimal commas", "thousands")


def test_three_decimals_after_a_comma_are_no_thousands(tmp_path):
    log = read_log(write(tmp_path / "a.csv", "step;loss\n0;8,123\n1;7,456\n"))
    assert log.loss.tolist() == [8.123, 7.456]


def test_thousands_percent_exponents_and_printed_tensors(tmp_path):
    text = 'step,loss,lr\n"1,000",tensor(4.5000),1e-2\n"2,000",3.5e0,0.5%\n"1,003,000",3,2E-3\n'
    log = read_log(write(tmp_path / "a.csv", text))
    assert log.step.tolist() == [1000, 2000, 1003000] and log.loss.tolist() == [4.5, 3.5, 3.0]
    assert log.learning_rate is not None and log.learning_rate.tolist() == [0.01, 0.005, 0.002]
    assert said(log, "thousands", "percent", "tensors")


def test_json_lines_with_nested_keys_and_evaluation_rows(tmp_path):
    lines = [
        {"_step": s, "train": {"loss": x, "lr": 0.01}, "_timestamp": 1.7e9 + s}
        for s, x in zip(STEPS, LOSSES, strict=True)
    ]
    lines.insert(2, {"_step": 100, "eval": {"loss": 9.0}})
    log = read_log(write(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert log.step.tolist() == STEPS and log.loss.tolist() == LOSSES and dict(log.columns)["loss"] == "train/loss"
    assert said(log, "others: eval/loss", "line 3")
    val = read_logs(tmp_path / "metrics.jsonl", loss="train/lr")[0]
    assert val.loss.tolist() == [0.01] * 4


def test_wandb_chart_export_with_two_runs_and_bands_and_a_second_chart(tmp_path):
    names = ("small - lr 3e-4", "big")
    head = ["Step"] + [f"{n} - train/loss{end}" for n in names for end in ("", "__MIN", "__MAX")]
    rows = [head] + [[str(s), str(x), "0", "99", *([str(x - 1), "0", "99"] if s else ["", "", ""])]
                     for s, x in zip(STEPS, LOSSES, strict=True)]  # fmt: skip
    path = write(tmp_path / "wandb_loss.csv", "\n".join(",".join(f'"{c}"' for c in row) for row in rows) + "\n")
    small, big = read_logs(path)
    assert (small.name, big.name) == names and small.loss.tolist() == LOSSES
    assert big.step.tolist() == STEPS[1:] and big.loss.tolist() == [x - 1 for x in LOSSES[1:]]
    assert small.learning_rate is None and said(small, "Weights & Biases")
    rate = "Step," + ",".join(f"{n} - lr" for n in names) + "\n0,0.1,0.2\n200,0.3,0.4\n400,0.5,0.6\n"
    small, big = read_logs([path, write(tmp_path / "wandb_lr.csv", rate)])
    assert small.learning_rate is not None and np.allclose(small.learning_rate, [0.1, 0.2, 0.3, 0.4])
    assert big.learning_rate is not None and np.allclose(big.learning_rate, [0.3, 0.4, 0.5])
    assert said(small, "interpolated", "joined")


def test_mlflow_long_table(tmp_path):
    lines = ["run_id,key,value,timestamp,step,is_nan"]
    for run, shift in (("9f3a", 0.0), ("b771", 1.0)):
        lines += [f"{run},train_loss,{x + shift},17000{s},{s},False" for s, x in zip(STEPS, LOSSES, strict=True)]
        lines += [f"{run},lr,{1e-3 + shift},17000{s},{s},False" for s in STEPS[::3]]
    first, second = read_logs(write(tmp_path / "metrics.csv", "\n".join(lines) + "\n"))
    assert (first.name, second.name) == ("9f3a", "b771") and second.loss.tolist() == [x + 1 for x in LOSSES]
    assert first.learning_rate is not None and np.allclose(first.learning_rate, 1e-3) and said(first, "long table")


def test_mlflow_wide_table(tmp_path):
    text = "Run ID,step,train_loss,val_loss\n" + "".join(
        f"{r},{s},{4 - s / 9},{5}\n" for r in ("aa", "bb") for s in (0, 1, 2)
    )
    first, second = read_logs(write(tmp_path / "m.csv", text))
    assert (first.name, second.name) == ("aa", "bb") and dict(first.columns)["loss"] == "train_loss"
    assert said(first, "others: val_loss")


def trainer_state() -> dict:
    history: list[dict] = [
        {"epoch": 0.1, "step": s, "loss": x, "learning_rate": 1e-4, "grad_norm": 2.5}
        for s, x in zip(STEPS[1:], LOSSES[1:], strict=True)
    ]
    history.insert(1, {"epoch": 0.1, "eval_loss": 5.5, "eval_runtime": 3.0, "step": 100})
    history.append({"epoch": 1.0, "step": 300, "total_flos": 1e15, "train_loss": 6.0, "train_runtime": 9.0})
    return {"best_metric": None, "global_step": 300, "is_world_process_zero": True, "log_history": history}


def test_hugging_face_trainer_state(tmp_path):
    log = read_log(write(tmp_path / "gpt2-small" / "trainer_state.json", json.dumps(trainer_state(), indent=2)))
    assert log.name == "gpt2-small" and log.step.tolist() == STEPS[1:] and log.loss.tolist() == LOSSES[1:]
    assert log.gradient_norm is not None and log.gradient_norm.tolist() == [2.5] * 3
    assert said(log, "Hugging Face", "others: eval_loss", "entry 2") and dict(log.columns)["loss"] == "loss"
    evaluated = trainer_state()
    evaluated["log_history"].append({"step": 300, "eval_loss": 4.5})
    held = read_log(write(tmp_path / "b" / "trainer_state.json", json.dumps(evaluated)), loss="eval_loss")
    assert held.loss.tolist() == [5.5, 4.5] and held.step.tolist() == [100, 300]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def event(step: int, tag: str, value: float, *, tensor: bool = False) -> bytes:
    # TensorProto: dtype DT_FLOAT, an empty shape, float_val packed.
    number = (
        block(8, b"\x08\x01" + block(2, b"") + block(5, struct.pack("<f", value)))
        if tensor
        else b"\x15" + struct.pack("<f", value)
    )
    return (
        b"\x09"
        + struct.pack("<d", 1.7e9)
        + b"\x10"
        + varint(step)
        + block(5, block(1, block(1, tag.encode()) + number))
    )


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))


def events(shift: float = 0.0) -> bytes:
    data = record(b"\x09" + struct.pack("<d", 1.7e9) + block(3, b"brain.Event:2"))
    for s, x in zip(STEPS, LOSSES, strict=True):
        data += record(event(s, "train/loss", x + shift, tensor=s > 100)) + record(event(s, "lr", 3e-4))
    return data


def test_tensorboard_events_assembled_by_hand(tmp_path):
    # CRC-32C check value of RFC 3720, B.4: 32 bytes of zeros give aa 36 91 8a.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    path = tmp_path / "logdir" / "run7" / "events.out.tfevents.1700000000.host.1.0"
    path.parent.mkdir(parents=True)
    path.write_bytes(events())
    for target in (path, tmp_path / "logdir", tmp_path / "logdir" / "run7"):
        log = read_log(target)
        assert log.name == "run7" and log.step.tolist() == STEPS and log.loss.tolist() == LOSSES
        assert log.learning_rate is not None and log.learning_rate.tolist() == [3e-4] * 4
        assert dict(log.columns) == {"step": "step", "loss": "train/loss", "learning_rate": "lr"}
    # A resumed run writes a second file into the folder.
    more = b"".join(record(event(s, "train/loss", 3.0)) for s in (300, 400))
    path.with_name("events.out.tfevents.1700009999.host.1.0").write_bytes(more)
    assert read_log(path.parent).step.tolist() == [*STEPS, 400] and read_log(path.parent).loss.tolist()[-2:] == [
        3.0,
        3.0,
    ]


def test_tensorboard_csv_download(tmp_path):
    text = "Wall time,Step,Value\n1700000000.1,0,8.5\n1700000001.1,100,5.25\n"
    log = read_log(write(tmp_path / "run-a-tag-loss.csv", text))
    assert log.step.tolist() == [0, 100] and log.loss.tolist() == [8.5, 5.25]


def test_keras_history_as_lists_and_pretty_json_list(tmp_path):
    log = read_log(write(tmp_path / "h.json", json.dumps({"loss": LOSSES, "lr": [1, 1, 1, 1]})), step="row")
    assert log.step.tolist() == [1, 2, 3, 4] and log.loss.tolist() == LOSSES
    rows = [{"iter": s, "lm loss": str(x)} for s, x in zip(STEPS, LOSSES, strict=True)]
    log = read_log(write(tmp_path / "l.json", json.dumps(rows, indent=1)))
    assert log.step.tolist() == STEPS and log.loss.tolist() == LOSSES


def test_folder_of_run_files_as_in_multipowerlaw(tmp_path):
    folder = tmp_path / "loss_curve_repo" / "csv_25"
    for name, rate in (("constant_24000", 3e-4), ("cosine_24000", 1e-4)):
        rows = "".join(f"{s},{rate},{4 - s / 1e4}\n" for s in range(2176, 3000, 128))
        write(folder / f"{name}.csv", "step,lr,loss\n" + rows)
    write(folder / "config.json", '{"width": 64}')
    write(folder / "notes.txt", "runs of Tuesday\n")
    first, second = read_logs(folder)
    assert (first.name, second.name) == ("constant_24000", "cosine_24000") and first.step[0] == 2176
    assert said(first, "config.json left out", "notes.txt left out", "starts at step 2176")


PRINTED = {
    "nanoGPT": ("number of parameters: 10.65M\n", "iter {s}: loss {x}, time 31.62ms, mfu 3.1%\n", "iter"),
    "Megatron": (
        "> building indices\n",
        " iteration {s:8d}/ 5000 | consumed samples: 640 | learning rate: 3.000E-04 | lm loss: {x:.6E} | loss scale: 1.0 |\n",
        "iteration",
    ),
    "logging": ("", "[2025-01-02 10:00:00] INFO step={s} loss={x} lr=3e-4\n", "step"),
}


@pytest.mark.parametrize("kind", PRINTED)
def test_printed_output(tmp_path, kind):
    head, line, step = PRINTED[kind]
    text = head + "".join(line.format(s=s, x=x) for s, x in zip(STEPS, LOSSES, strict=True)) + "saving checkpoint\n"
    log = read_log(write(tmp_path / "out.log", text))
    assert log.step.tolist() == STEPS and log.loss.tolist() == LOSSES and dict(log.columns)["step"] == step
    assert said(log, "4 lines with a step and a loss")
    assert kind == "nanoGPT" or log.learning_rate is not None and log.learning_rate.tolist() == [3e-4] * 4


def test_gzip(tmp_path):
    (tmp_path / "run.csv.gz").write_bytes(gzip.compress(b"step,loss\n0,2\n1,1\n"))
    log = read_log(tmp_path / "run.csv.gz")
    assert log.name == "run" and log.loss.tolist() == [2, 1] and said(log, "gzip")


# several runs


def test_runs_told_apart_by_text_and_seed_columns(tmp_path):
    rows = [
        f"{m},{seed},constant,{s},{x}"
        for m in ("25M", "100M")
        for seed in (1, 2)
        for s, x in ((0, 8), (10, 4), (20, 3))
    ]
    path = write(tmp_path / "all.csv", "model,seed,schedule,step,loss\n" + "\n".join(rows) + "\n")
    logs = read_logs(path)
    assert [log.name for log in logs] == ["25M/seed 1", "25M/seed 2", "100M/seed 1", "100M/seed 2"]
    assert said(logs[0], "told apart by model, seed")
    assert [log.name for log in read_logs(path, run="25M/*")] == ["25M/seed 1", "25M/seed 2"]
    assert read_log(path, run="100M/seed 2").step.tolist() == [0, 10, 20]
    with pytest.raises(InputError, match=r"4 runs: 25M/seed 1.*run="):
        read_log(path)
    with pytest.raises(InputError, match="run: expected one of 25M/seed 1"):
        read_log(path, run="400M")


def test_a_phase_column_does_not_split_one_run(tmp_path):
    rows = "0,warmup,8\n1,warmup,7\n2,stable,6\n3,stable,5\n4,decay,4\n5,decay,3\n"
    for name in ("phase", "schedule", "dataset"):
        assert read_log(write(tmp_path / "a.csv", f"step,{name},loss\n{rows}")).step.size == 6


def test_interleaved_runs_told_apart_by_a_column_of_unknown_name(tmp_path):
    text = "who,step,loss\n" + "".join(f"{w},{s},{9 - s}\n" for s in range(3) for w in ("ann", "bob"))
    assert [log.name for log in read_logs(write(tmp_path / "a.csv", text))] == ["ann", "bob"]


def test_training_rows_are_taken_where_a_column_names_the_split(tmp_path):
    text = "split,step,loss\n" + "".join(
        f"{k},{s},{9 - s + (k == 'val')}\n" for s in range(3) for k in ("train", "val")
    )
    log = read_log(write(tmp_path / "a.csv", text))
    assert log.loss.tolist() == [9, 8, 7] and said(log, "rows of 'train' taken, val left out")


def test_equal_names_of_two_files_are_kept_apart(tmp_path):
    paths = [write(tmp_path / place / "log.csv", "step,loss\n0,2\n1,1\n") for place in ("a", "b")]
    assert len({log.name for log in read_logs(paths)}) == 2


# which column


@pytest.mark.parametrize(
    ("header", "picked"),
    [
        ("it,Train Loss", ("it", "Train Loss")),
        ("iters,training-loss,val_loss", ("iters", "training-loss")),
        ("num_batches,eval/loss,train/loss", ("num_batches", "train/loss")),
        ("epoch,global_step,nll", ("global_step", "nll")),
        ("trainer/global_step,cross_entropy", ("trainer/global_step", "cross_entropy")),
        ("_step,eval/lm loss,lm loss", ("_step", "lm loss")),
        ("batch,loss_scale,aux_loss,c4_loss", ("batch", "c4_loss")),
        ("Iteration,eval/loss", ("Iteration", "eval/loss")),
        ("step,train/CrossEntropyLoss,optim/total_grad_norm", ("step", "train/CrossEntropyLoss")),
        ("step,train_loss_epoch,train_loss_step", ("step", "train_loss_step")),
        ("when_did_it_happen,how_bad_is_it", ("when_did_it_happen", "how_bad_is_it")),
        ("a,b", ("a", "b")),
    ],
)
def test_columns_are_found_by_name_and_else_by_content(tmp_path, header, picked):
    names = header.split(",")
    fall = np.array([7.5, 5.25, 4.5, 3.75])
    columns = [np.array([0, 10, 20, 30]) if n == picked[0] else fall if n == picked[1] else fall + 9 for n in names]
    text = header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
    log = read_log(write(tmp_path / "a.csv", text))
    assert (dict(log.columns)["step"], dict(log.columns)["loss"]) == picked, log.columns
    assert log.step.tolist() == [0, 10, 20, 30] and log.loss.tolist() == fall.tolist()
    assert said(log, "taken by its values") == (header in ("when_did_it_happen,how_bad_is_it", "a,b"))


@pytest.mark.parametrize(
    "name", ["lr", "LR", "learning_rate", "lr-group0", "lr-AdamW", "optim/learning_rate_group0", "train/lr"]
)
def test_learning_rate_names(tmp_path, name):
    log = read_log(write(tmp_path / "a.csv", f"step,{name},lr_peak,loss\n0,.5,9,2\n1,.25,9,1\n"))
    assert log.learning_rate is not None and log.learning_rate.tolist() == [0.5, 0.25]


def test_optional_columns_and_their_units(tmp_path):
    text = "step,loss,consumed_tokens,train_gflops,logit_scale,grad-norm,tokens_per_second\n0,3,0,0,1,5,7\n10,2,80,4,1.5,4,7\n"
    log = read_log(write(tmp_path / "a.csv", text))
    assert log.tokens is not None and log.tokens.tolist() == [0, 80]
    assert log.flops is not None and log.flops.tolist() == [0, 4e9] and said(log, "times 1e+09")
    assert log.logit_scale is not None and log.logit_scale.tolist() == [1, 1.5]
    assert log.gradient_norm is not None and log.gradient_norm.tolist() == [5, 4]
    same = read_log(write(tmp_path / "b.csv", "step,loss,tokens\n0,3,512\n1,2,512\n2,1,512\n"))
    assert same.tokens is None and said(same, "does not count up")


def test_named_columns_rates_and_tokens(tmp_path):
    path = write(tmp_path / "a.csv", "Step,Val Loss,loss,tokens\n1,5,2,16\n2,4,1,32\n")
    assert read_log(path, loss="val_loss").loss.tolist() == [5, 4]
    rated = read_log(path, learning_rate=lambda s: 0.5 / s)
    assert rated.learning_rate is not None and rated.learning_rate.tolist() == [0.5, 0.25]
    assert read_log(path, learning_rate=0.5).columns[-1] == ("learning_rate", "given")
    path = write(tmp_path / "b.csv", "tokens,loss\n1600,2\n3200,1\n")
    assert read_log(path, batch_tokens=16).step.tolist() == [100, 200]
    with pytest.raises(InputError, match="batch_tokens"):
        read_log(path)
    for bad in ({"loss": "acc"}, {"format": "xls"}, {"batch_tokens": -1}, {"warmup_steps": np.nan}):
        with pytest.raises(InputError) as error:
            read_log(path, **bad)
        assert error.value.argument == next(iter(bad))


# repairs of steps


def logged(tmp_path, steps, losses):
    rows = "".join(f"{s},{x}\n" for s, x in zip(steps, losses, strict=True))
    return write(tmp_path / "a.csv", "step,loss\n" + rows)


def test_a_resumed_run_keeps_the_later_rows(tmp_path):
    steps = [0, 100, 200, 300, 200, 300, 400]
    log = read_log(logged(tmp_path, steps, [9, 5, 4, 3.5, 4.1, 3.6, 3.2]))
    assert log.step.tolist() == [0, 100, 200, 300, 400] and log.loss.tolist() == [9, 5, 4.1, 3.6, 3.2]
    assert said(log, "resumed at step 200 (row 6): 2 earlier rows")


def test_a_restarted_counter_goes_on_while_the_loss_goes_on(tmp_path):
    log = read_log(logged(tmp_path, [0, 100, 200, 0, 100, 200], [9, 5, 4, 3.9, 3.6, 3.4]))
    assert log.step.tolist() == [0, 100, 200, 300, 400] and log.loss.tolist() == [9, 5, 3.9, 3.6, 3.4]
    assert said(log, "begin again at row 5", "200 added")


def test_a_loss_that_begins_anew_is_another_run(tmp_path):
    path = logged(tmp_path, [0, 100, 200, 0, 100, 200], [9, 5, 4, 9.1, 5.5, 4.4])
    first, second = read_logs(path)
    assert (first.name, second.name) == ("a#1", "a#2") and second.loss.tolist() == [9.1, 5.5, 4.4]
    with pytest.raises(InputError, match="2 runs: a#1, a#2"):
        read_log(path)
    assert read_log(path, run="a#2").loss[0] == 9.1


def test_rows_out_of_order_are_sorted_and_repeats_replaced(tmp_path):
    log = read_log(logged(tmp_path, [0, 200, 100, 300, 300], [9, 4, 5, 3, 2.9]))
    assert log.step.tolist() == [0, 100, 200, 300] and log.loss.tolist() == [9, 5, 4, 2.9]
    assert said(log, "out of order at row 4", "1 repeated steps")
    log = read_log(logged(tmp_path, [300, 200, 100, 0], [3, 4, 5, 9]))
    assert log.step.tolist() == STEPS and log.loss.tolist() == [9, 5, 4, 3] and said(log, "turned round")
    shuffled = np.random.default_rng(0).permutation(200)
    log = read_log(logged(tmp_path, shuffled, 9.0 - shuffled / 100))
    assert log.step.tolist() == list(range(200)) and np.allclose(log.loss, 9 - np.arange(200) / 100)


def test_a_rate_logged_on_other_rows_is_joined(tmp_path):
    text = "step,lr,train_loss\n0,.1,\n0,,9\n10,.2,\n10,,5\n20,.3,\n20,,4\n"
    log = read_log(write(tmp_path / "lightning.csv", text))
    assert log.learning_rate is not None and log.learning_rate.tolist() == [0.1, 0.2, 0.3]
    assert not said(log, "interpolated") and said(log, "without a finite loss")


# the log itself


def test_intrinsic_time_with_warmup_is_the_sum_of_rates(tmp_path):
    """Rates logged every 10 steps of a schedule that is linear between them: the sum over all steps, brute force."""
    every = np.arange(1, 1001)
    rate = np.interp(every, [0, 200, 1000], [0, 1e-2, 1e-3])
    total = np.cumsum(rate)
    kept = every[every % 10 == 0]
    kept = kept[kept >= 300]
    rows = "".join(f"{s},{rate[s - 1]},{9 / s}\n" for s in kept)
    log = read_log(write(tmp_path / "a.csv", "step,lr,loss\n" + rows))
    tau = log.tau(200)
    assert np.allclose(np.diff(tau), np.diff(total[kept - 1]), rtol=2e-2)
    # Before the first row the rate is held at its first logged value, 8 % below the peak here.
    assert np.isclose(tau[0], rate[299] * 200.0, rtol=1e-12)
    assert np.isclose(log.tau()[0], rate[299] * 150.0, rtol=1e-12) and said(log, "linear warm-up from zero")
    given = read_log(tmp_path / "a.csv", warmup_steps=200)
    assert np.array_equal(given.tau(), tau) and not said(given, "assumed")
    curve = log.curve(200)
    assert isinstance(curve, LossCurve) and np.array_equal(curve.tau, tau) and curve.loss[0] == log.loss[0]
    with pytest.raises(InputError, match="learning_rate"):
        read_log(logged(tmp_path, STEPS, LOSSES)).tau()
    with pytest.raises(InputError, match="warmup_steps"):
        log.tau(-1)


def test_constant_rate_from_the_first_step_needs_no_warmup(tmp_path):
    log = read_log(logged(tmp_path, [10, 20, 30], [3, 2, 1]), learning_rate=0.5)
    assert np.allclose(log.tau(), [5, 10, 15])


def test_smoothing_is_explicit_centred_and_keeps_a_line(tmp_path):
    log = read_log(logged(tmp_path, np.arange(9), 9.0 - np.arange(9)))
    smooth = log.smoothed(5)
    assert np.allclose(smooth.loss, log.loss) and said(smooth, "running mean over 5") and not said(log, "mean")
    spike = read_log(logged(tmp_path, np.arange(5), [1, 1, 4, 1, 1])).smoothed(3)
    assert np.allclose(spike.loss, [1, 2, 2, 2, 1])
    with pytest.raises(InputError, match="window"):
        log.smoothed(4)


def test_the_digest_is_of_the_numbers(tmp_path):
    log = read_log(logged(tmp_path, STEPS, LOSSES))
    spaced = read_log(
        write(tmp_path / "b.csv", "loss;step\n" + "".join(f"{x};{s}\n" for s, x in zip(STEPS, LOSSES, strict=True)))
    )
    assert log.sha256 == spaced.sha256 and len(log.sha256) == 64
    assert log.smoothed(3).sha256 != log.sha256 and "4 points" in str(log)


# real curves and size


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data beside this checkout")
@pytest.mark.parametrize(
    ("file", "runs", "rows", "longest"),
    [
        ("multipowerlaw_curves.csv", 18, 4162, ("25M/constant_72000", 546)),
        ("pythia_train_loss.csv", 2, 1894, ("14m", 947)),
        ("olmo_ladder_val_loss.csv", 18, 827, ("cosine/1B/0.5xC", 55)),
        ("gemstones_train_loss.csv", 42, 1299, ("hot/PyGemma-1024x28_pretrain", 50)),
    ],
)
def test_public_curves_are_read_whole(file, runs, rows, longest):
    logs = read_logs(DATA / file)
    assert len(logs) == runs and sum(log.step.size for log in logs) == rows
    first = max(logs, key=lambda log: log.step.size)
    assert (first.name, first.step.size) == longest


@pytest.mark.slow
def test_a_million_rows_and_the_broken_one_among_them(tmp_path):
    n = 1_000_000
    step = np.arange(n)
    loss = np.round(2 + 8 * (step + 10.0) ** -0.3 + 0.01 * np.random.default_rng(0).standard_normal(n), 6)
    lines = ["step,lr,loss", *(f"{s},0.0003,{x}" for s, x in zip(step.tolist(), loss.tolist(), strict=True))]
    log = read_log(write(tmp_path / "big.csv", "\n".join(lines) + "\n"))
    assert np.array_equal(log.step, step) and np.array_equal(log.loss, loss)
    for cells, words in (
        ("699999,x,3.2", "row 700001.*'x'"),
        ("699999,3.2", "row 700001"),
        ("-5,1,3.2", "row 700001.*-5"),
    ):
        lines[700_000] = cells
        with pytest.raises(InputError, match=words):
            read_log(write(tmp_path / "big.csv", "\n".join(lines) + "\n"))
