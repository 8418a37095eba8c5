"""The record of a run survives crashes, and its two forms say the same."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from mtx.errors import UserError
from mtx.report.log import RunLog, read_metrics, read_results, write_results


def event_scalars(run_dir, stage):
  """What TensorBoard would show: (step, tag) -> value, after the purges that restarts ask for."""
  shown = {}
  for path in sorted((Path(run_dir) / "events" / stage).iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      header = data[at : at + 8]
      (length,) = struct.unpack("<Q", header)
      body = data[at + 12 : at + 12 + length]
      assert struct.unpack("<I", data[at + 8 : at + 12]) == (masked_crc32c(header),)
      assert struct.unpack("<I", data[at + 12 + length : at + 16 + length]) == (masked_crc32c(body),)
      at += 16 + length
      event = Event.FromString(body)
      if event.session_log.status == SessionLog.START:
        shown = {key: value for key, value in shown.items() if key[0] < event.step}
      for value in event.summary.value:
        shown[event.step, value.tag] = value.simple_value
  return shown


def line_scalars(run_dir, stage):
  lines = [line for line in read_metrics(run_dir) if line["stage"] == stage]
  fields = ("stage", "step", "time")
  return {(m["step"], k): np.float32(v).item() for m in lines for k, v in m.items() if k not in fields}


def write_run(run_dir):
  for stage, steps in (("pretrain", 5), ("mhr", 8)):
    with RunLog(run_dir, stage) as log:
      for step in range(1, steps + 1):
        log.scalars(step, {"loss": 1 / step, "eval/exact_match": 10.0 * step})


@pytest.mark.parametrize("torn", [b"", b'{"stage": "mhr", "step": 9, "ti', '{"stage": "é'.encode()[:-1], b"{"])
@pytest.mark.parametrize("step", [-1, 0, 3, 8, 100])
def test_resume_drops_exactly_later_and_torn_lines(tmp_path, step, torn):
  write_run(tmp_path)
  before = read_metrics(tmp_path)
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(torn)
  assert read_metrics(tmp_path) == before
  log = RunLog(tmp_path, "mhr")
  log.resume(step)
  kept = [m for m in before if m["stage"] != "mhr" or m["step"] <= step]
  assert read_metrics(tmp_path) == kept
  log.scalars(step + 1, {"loss": 0.5})
  log.close()
  assert read_metrics(tmp_path)[:-1] == kept
  assert read_metrics(tmp_path)[-1]["step"] == step + 1
  assert event_scalars(tmp_path, "mhr") == line_scalars(tmp_path, "mhr")
  assert event_scalars(tmp_path, "pretrain") == line_scalars(tmp_path, "pretrain")
  assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "events"}


def test_lines_and_events_agree(tmp_path):
  log = RunLog(tmp_path, "pretrain")
  log.scalars(1, {"loss": np.float32(0.1), "eval/rouge_l": 3})
  log.close()
  log.scalars(2, {"loss": 0.1, "mfu": np.array(0.25)})
  log.close()
  assert line_scalars(tmp_path, "pretrain") == event_scalars(tmp_path, "pretrain")
  assert set(line_scalars(tmp_path, "pretrain")) == {
    (1, "loss"),
    (1, "eval/rouge_l"),
    (2, "loss"),
    (2, "mfu"),
  }


def events_of(run_dir, folder):
  """Tags of what is there, in the order in which it was written: (step, tag) -> value, purges done."""
  shown = {}
  for path in sorted((Path(run_dir) / "events" / folder).iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack("<Q", data[at : at + 8])
      event = Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      if event.session_log.status == SessionLog.START:
        shown = {key: value for key, value in shown.items() if key[0] < event.step}
      shown |= {(event.step, value.tag): value for value in event.summary.value}
  return shown


LINE = {"task": "sort", "inputs": "a|b\n<b>", "references": ["x", "y"], "prediction": "_z_", "f1": 3.0}


def test_routes_and_samples_are_shown_and_outlive_a_restart(tmp_path):
  weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2))
  log = RunLog(tmp_path, "route")
  log.routes(0, list("abc"), weights)
  log.resume(0)
  log.scalars(1, {"loss": 1.0})
  for step in (10, 20):
    log.routes(step, list("abc"), weights / step)
    log.samples(step, "heldout", [LINE, LINE | {"task": "copy", "prediction": ""}])
  # Not closed: a killed process would leave it so.
  shown = events_of(tmp_path, "route-evaluation")
  assert {tag for _, tag in shown} == {"routes/split_0", "routes/split_1", "samples/heldout/text_summary"}
  histogram = shown[20, "routes/split_1"].histo
  assert histogram.num == 12 and histogram.sum == pytest.approx(weights[:, 1].sum() / 20)
  below = [(weights[:, 1] / 20 < limit).sum() for limit in histogram.bucket_limit]
  assert np.cumsum(histogram.bucket).tolist() == below and below[-1] == 12
  samples = shown[10, "samples/heldout/text_summary"]
  assert samples.metadata.plugin_data.plugin_name == "text"  # by which TensorBoard finds what it shows as Markdown
  text = samples.tensor.string_val[0].decode().splitlines()
  assert text[2] == "| sort | a&#124;b<br>&lt;b> | x / y | &#95;z&#95; |"
  assert text[3].startswith("| copy |") and len(text) == 4
  saved = json.loads((tmp_path / "route" / "routing.json").read_text())
  assert (saved["step"], saved["tasks"]) == (20, ["a", "b", "c"])
  np.testing.assert_allclose(saved["weights"], weights / 20, atol=1e-5)
  with RunLog(tmp_path, "route") as again:
    again.resume(10)
  assert {step for step, _ in events_of(tmp_path, "route-evaluation")} == {0, 10}
  assert event_scalars(tmp_path, "route") == line_scalars(tmp_path, "route")


def test_samples_take_every_task_in_turn(tmp_path):
  lines = [LINE | {"task": f"t{task}", "prediction": str(i)} for task in range(5) for i in range(9)]
  with RunLog(tmp_path, "route") as log:
    log.samples(1, "train", lines)
  (value,) = events_of(tmp_path, "route-evaluation").values()
  rows = [line.split(" | ") for line in value.tensor.string_val[0].decode().splitlines()[2:]]
  assert len(rows) == 12 and [row[0] for row in rows[:6]] == ["| t0", "| t1", "| t2", "| t3", "| t4", "| t0"]


def test_a_killed_process_loses_no_line_and_its_events_come_back(tmp_path):
  program = (
    "import sys, time\nfrom mtx.report.log import RunLog\nlog = RunLog(sys.argv[1], 'mhr')\n"
    "for step in range(1, 51): log.scalars(step, {'loss': 1 / step})\n"
    "print('logged', flush=True)\ntime.sleep(60)"
  )
  process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
  assert process.stdout.readline() == b"logged\n"
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  assert [m["step"] for m in read_metrics(tmp_path)] == list(range(1, 51))
  for path in (tmp_path / "events" / "mhr").iterdir():  # what the kill tore is TensorBoard's to skip
    path.unlink()
  with RunLog(tmp_path, "mhr") as log:
    log.resume(40)
  assert event_scalars(tmp_path, "mhr") == {(s, "loss"): np.float32(1 / s).item() for s in range(1, 41)}


def test_appending_after_a_torn_line_keeps_the_next_one_whole(tmp_path):
  write_run(tmp_path)
  before = read_metrics(tmp_path)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "mhr", "st')
  with RunLog(tmp_path, "fewshot") as log:
    log.scalars(1, {"loss": 2.0})
  assert read_metrics(tmp_path)[:-1] == before
  assert read_metrics(tmp_path)[-1]["stage"] == "fewshot"


def test_a_spoilt_line_in_the_middle_is_named_and_nothing_is_touched(tmp_path):
  write_run(tmp_path)
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join([*lines[:2], "oops\n", *lines[2:]]))
  spoilt = path.read_bytes()
  with pytest.raises(UserError, match=r"metrics\.jsonl:3 is not a JSON object"):
    RunLog(tmp_path, "mhr").resume(2)
  assert path.read_bytes() == spoilt


def test_lines_are_strict_json_even_when_a_loss_is_not_finite(tmp_path):
  with RunLog(tmp_path, "mhr") as log:
    log.scalars(1, {"loss": float("nan"), "norm": float("inf"), "low": -np.inf})

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  (line,) = read_metrics(tmp_path)
  np.testing.assert_equal([line["loss"], line["norm"], line["low"]], [np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("name", ["stage", "step", "time"])
def test_fields_of_a_line_are_not_scalars(tmp_path, name):
  with pytest.raises(ValueError, match=name), RunLog(tmp_path, "mhr") as log:
    log.scalars(1, {name: 1.0})


def test_no_run_reads_as_empty(tmp_path):
  assert read_metrics(tmp_path / "absent") == []
  assert read_results(tmp_path / "absent") == []


def row(**fields):
  plain = dict(stage="fewshot", method="MHR", task="sort", category="lists", split="heldout")
  return plain | dict(metric="exact_match", value=1.0, count=8, step=100, seed=0) | fields


def test_results_of_other_methods_and_seeds_stay_and_the_same_key_is_replaced(tmp_path):
  first = [row(), row(method="MHR-z"), row(stage="mhr"), row(seed=1), row(task="reverse"), row(metric="f1")]
  write_results(tmp_path, first)
  write_results(tmp_path, [row(value=np.float32(2.0), step=200), row(seed=2)])
  assert read_results(tmp_path) == [row(value=2.0, step=200), *first[1:], row(seed=2)]


def test_a_failed_write_leaves_the_results_as_they_were(tmp_path, monkeypatch):
  write_results(tmp_path, [row()])
  with pytest.raises(TypeError):
    write_results(tmp_path, [row(value=object())])

  def crash(*paths):
    raise OSError("no space left")

  monkeypatch.setattr(os, "replace", crash)
  with pytest.raises(OSError, match="no space"):
    write_results(tmp_path, [row(value=3.0)])
  assert read_results(tmp_path) == [row()]
  assert os.listdir(tmp_path) == ["results.json"]


def test_spoilt_results_are_named(tmp_path):
  (tmp_path / "results.json").write_text('[{"stage": ')
  with pytest.raises(UserError, match=r"results\.json is not a JSON list"):
    write_results(tmp_path, [row()])
  assert (tmp_path / "results.json").read_text() == '[{"stage": '
