"""Tests reject and intervals cover as often as they say, on few worlds; `python -m mtx.eval.calibration` takes more."""

import numpy as np
import pytest

from mtx.eval import calibration
from mtx.eval.calibration import Answers, Normal, Row

WORLDS = 250


@pytest.fixture(scope="module")
def measured():
  """(check, world) -> row."""
  return {(r.check, r.world): r for r in calibration.rows(WORLDS, np.random.default_rng(3))}


def of(measured, check: str, world: str = "") -> list[Row]:
  found = [row for (c, w), row in measured.items() if check in c and world in w]
  assert found, (check, world)
  return found


def test_every_row_is_where_it_should_be_or_within_three_standard_errors_of_it(measured):
  judged = [row for row in measured.values() if row.range is not None]
  assert len(judged) > 30
  for row in judged:
    slack = 0 if row.error is None else 3 * (0.05 * 0.95 / WORLDS) ** 0.5
    assert row.range[0] - slack <= row.measured <= row.range[1] + slack, row


def test_plain_percentiles_miss_what_seeds_do(measured):
  assert of(measured, "plain percentile", "seeds scatter")[0].measured < 0.82
  assert of(measured, "plain percentile", "neither")[0].measured > 0.97


def test_peeking_breaks_the_usual_test_and_not_ours(measured):
  peeked, waited = of(measured, "z test every 10", "rates 0.5")[0], of(measured, "z test at the end", "rates 0.5")[0]
  assert 0.15 < peeked.measured < 0.27 and waited.measured < 0.09
  assert all(row.measured < 0.06 for row in of(measured, "anytime", "rates 0.5"))
  assert of(measured, "anytime", "rates 0.7")[0].measured > 0.8


def test_worlds_have_the_truth_they_say():
  rng = np.random.default_rng(4)
  for world in (Answers(2, 400, ability=1.0), Normal(2, 400, (0.001, 0.001, 0.001))):
    scores = world.draw(400, 2, 0.6, rng)
    differences = (scores[:, 0] - scores[:, 1]).mean((1, 2))
    assert differences.mean() == pytest.approx(world.truth(0.6), abs=4 * differences.std() / 20)


@pytest.mark.parametrize(
  ("share", "error", "verdict"),
  [(0.05, 0.01, "yes"), (0.07, 0.002, "no"), (0.03, 0.002, "no"), (0.063, 0.002, "within error"), (0.061, None, "no")],
)
def test_verdicts(share, error, verdict):
  assert Row("test rejects", "w", share, error, (0.04, 0.06)).verdict == verdict


def test_a_miss_is_told(monkeypatch, capsys):
  rows = [Row("test rejects", "w", 0.07, 0.001, (0.04, 0.06)), Row("shown", "w", 0.9, None, None)]
  monkeypatch.setattr(calibration, "rows", lambda worlds, rng: iter(rows))
  assert calibration.main(["--worlds", "10"]) == 1
  shown = capsys.readouterr().out
  assert "7.0" in shown and "4 to 6" in shown and "no" in shown and "exact" in shown
  monkeypatch.setattr(calibration, "rows", lambda worlds, rng: iter(rows[1:]))
  assert calibration.main(["--worlds", "10"]) == 0


@pytest.mark.slow
def test_the_whole_table(capsys):
  assert calibration.main([]) == 0, capsys.readouterr().out
