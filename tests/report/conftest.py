"""Run folders for tests of pages."""

import made_runs
import pytest


@pytest.fixture(scope="session")
def make_run():
  """make_run(folder, ...): see `made_runs`."""
  return made_runs.make_run
