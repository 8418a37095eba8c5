"""Results of an earlier start of a run: they hold as long as the model that was judged is the same."""

import hashlib
import json
import shutil

from mtx.atomic import write
from mtx.training.parameters import fingerprint
from mtx.training.session import Carried, Row, Session

JUDGED = "judged.json"  # in RUN/STAGE: of which model its results are


def identity(session: Session, carried: Carried) -> str:
  """Tells a model from others: a hash of its config, its parameters and the order of its router rows."""
  config = json.dumps(session.config.to_dict(), sort_keys=True, default=str)
  text = f"{config} {fingerprint(carried.params)} {carried.tasks}"
  return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def earlier_rows(session: Session, stage: str, carried: Carried) -> list[Row]:
  """Rows that a stage which judges `carried` has left in the run, if they are of this very model.

  Stages before it may have been trained on since. What another model got is then forgotten, with its predictions in
  RUN/STAGE, and that is told.
  """
  path, now = session.folder(stage) / JUDGED, identity(session, carried)
  rows = session.reporter.saved_rows(stage)
  known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
  if known == json.dumps(now):
    return rows
  if known or rows:
    session.reporter.note(f"{stage}: the model is not the one that was judged before; it is judged anew")
    session.reporter.forget(stage)
    shutil.rmtree(session.folder(stage), ignore_errors=True)
  write(path, json.dumps(now) + "\n")
  return []
