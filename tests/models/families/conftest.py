"""`pytest tests/models/families` ends with a table: how far each model is from transformers', padding on both sides."""

from collections import defaultdict

import parity
import pytest

COLUMNS = {"logits": max, "gradients": max, "greedy": min}


@pytest.fixture(autouse=True)
def measured(request, record_property):
  """What a test measures goes into its report, under the variant that it runs."""
  parity.MEASURED.clear()
  yield
  if parity.MEASURED:
    family = request.path.stem.removeprefix("test_").removesuffix("_family")
    numbers = tuple((column, float(number)) for column, number in parity.MEASURED)  # what workers of xdist can send
    record_property("parity", (f"{family}: {request.node.callspec.params['pair']}", numbers))


def pytest_terminal_summary(terminalreporter):
  rows = defaultdict(lambda: defaultdict(list))
  for report in terminalreporter.getreports("") + terminalreporter.getreports("passed"):
    for name, value in report.user_properties if report.when == "teardown" else ():
      if name == "parity":
        for column, number in value[1]:
          rows[value[0]][column].append(number)
  if not rows:
    return
  terminalreporter.section("differences from transformers, of the largest value; equal greedy tokens")
  terminalreporter.write_line(f"{'':<40}" + "".join(f"{column:>10}" for column in COLUMNS))
  for variant, found in rows.items():
    shown = {column: worst(found[column]) if found[column] else None for column, worst in COLUMNS.items()}
    show = lambda column, value: "-" if value is None else f"{value:.0%}" if column == "greedy" else f"{value:.1e}"
    cells = [show(column, value) for column, value in shown.items()]
    terminalreporter.write_line(f"{variant:<40}" + "".join(f"{cell:>10}" for cell in cells))
