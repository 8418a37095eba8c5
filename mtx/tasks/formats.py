"""Records of a data file by its ending, and settings in YAML or JSON whose keys know their lines."""

import functools
import json
import re
import sys
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from mtx.errors import UserError, did_you_mean
from mtx.tasks.files import DataFile
from mtx.tasks.task import Reading

Record = dict[str, Any]
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
# Only what is written back as it was read: 007 and +1 stay text.
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
BOOLEAN = "tag:yaml.org,2002:bool"
TIMESTAMP = "tag:yaml.org,2002:timestamp"


def records(file: DataFile, reading: Reading) -> Iterator[tuple[str, Record]]:
  """(place, record) of every row of a .jsonl, .csv, .tsv (all three also .gz) or .parquet file.

  CSV and TSV have a header. A column of theirs in which every value is an integer is read as integers, because
  templates use labels as indices; all others are text.

  Raises:
    UserError: another ending; a file that is missing, not UTF-8 or no Parquet; a header that is empty or names a
      column twice; a bad row, beyond the budget of `reading`.
  """
  ending = ending_of(file)
  if ending == ".jsonl":
    yield from file.jsonl({}, reading)
  elif ending == ".parquet":
    yield from _parquet(file)
  else:
    integers = _integers(file, file.fingerprint() if file.path.is_file() else "")
    for place, row in _table(file, reading):
      yield place, {column: int(value) if column in integers else value for column, value in row.items()}


def ending_of(file: DataFile) -> str:
  """One of ENDINGS.

  Raises:
    UserError: the file has another one.
  """
  ending = next(iter(file.path.with_suffix("").suffixes[-1:]), "") if file.path.suffix == ".gz" else file.path.suffix
  if ending not in ENDINGS or (ending == ".parquet" and file.path.suffix == ".gz"):
    raise UserError(f"{file.name}: files that end with {file.path.suffix!r} are not read", hint=_endings(ending))
  return ending


def _endings(ending: str) -> str:
  return did_you_mean(ending, ENDINGS) if ending else f"valid choices: {', '.join(ENDINGS)}, or .jsonl.gz and so on"


def _table(file: DataFile, reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of a CSV or TSV file."""
  if ending_of(file) == ".csv":
    rows = file.csv(_columns(file, file.csv_header()), reading)
  else:
    header = next((line.split("\t") for _, line in file.lines(Reading())), [])
    rows = file.tsv(_columns(file, header), reading)
    next(rows)  # the header
  yield from rows


def _columns(file: DataFile, header: list[str]) -> list[str]:
  if not header:
    raise UserError(f"{file.name} is empty", hint="its first line names the columns")
  if twice := [column for column in header if header.count(column) > 1]:
    raise UserError(f"{file.name}:1 has two columns {twice[0]!r}", hint="rename one of them")
  return header


@functools.lru_cache(maxsize=64)
def _integers(file: DataFile, fingerprint: str) -> frozenset[str]:
  """Columns that hold nothing but integers. The fingerprint is in the key, so that a changed file is read again."""
  del fingerprint
  columns: set[str] | None = None
  for _, row in _table(file, Reading(budget=sys.maxsize)):
    here = {column for column, value in row.items() if INTEGER.fullmatch(value)}
    columns = here if columns is None else columns & here
    if not columns:
      break
  return frozenset(columns or ())


def _parquet(file: DataFile) -> Iterator[tuple[str, Record]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise UserError(
      f"{file.name}: Parquet is read by pyarrow, which is not installed", hint="pip install pyarrow"
    ) from None
  if not file.path.is_file():
    raise UserError(f"{file.path} is not there")
  try:
    table, number = parquet.ParquetFile(file.path), 0
    for batch in table.iter_batches():
      for record in batch.to_pylist():
        number += 1
        yield f"{file.name}: row {number}", record
  except pyarrow.ArrowException as error:
    raise UserError(f"{file.name} is not a whole Parquet file: {error}", hint="write or copy it again") from error


class Table(dict):
  """A mapping of a settings file.

  Attributes:
    lines: key -> its line; empty where the file is JSON.
  """

  def __init__(self, *args):
    super().__init__(*args)
    self.lines: dict[Any, int] = {}


class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
  """YAML whose mappings are Tables, and in which yes, no, on, off and dates are text, as in YAML 1.2.

  Keys that occur twice are refused: of two tasks of one name YAML would keep one silently.
  """

  yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOLEAN, TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
  }

  def table(self, node: yaml.MappingNode) -> Table:
    """What a mapping node stands for."""
    self.flatten_mapping(node)
    table = Table()
    for key_node, value_node in node.value:
      key = self.construct_object(key_node, deep=True)
      if not isinstance(key, Hashable):
        raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
      if key in table:
        again = f"key {key!r} is there twice, first in line {table.lines[key]}"
        raise yaml.constructor.ConstructorError(None, None, again, key_node.start_mark)
      table[key] = self.construct_object(value_node, deep=True)
      table.lines[key] = key_node.start_mark.line + 1
    return table


YamlLoader.add_implicit_resolver(BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
YamlLoader.add_constructor("tag:yaml.org,2002:map", YamlLoader.table)


def settings(file: DataFile, loader: type[YamlLoader] = YamlLoader) -> Table:
  """Content of a .yaml, .yml or .json file that is a mapping.

  Raises:
    UserError: it can not be parsed (line and column are named), or is no mapping.
  """
  if file.path.suffix == ".json":
    content = _json(file)
  else:
    try:
      content = yaml.load(file.text(), Loader=loader)
    except yaml.MarkedYAMLError as error:
      mark = error.problem_mark or error.context_mark
      where = f":{mark.line + 1}: column {mark.column + 1}" if mark else ""
      raise UserError(f"{file.name}{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
      raise UserError(f"{file.name} is not YAML: {error}") from error
  if content is None:
    raise UserError(f"{file.name} is empty")
  if not isinstance(content, Table):
    raise UserError(f"{file.name} holds {type(content).__name__}, not a mapping")
  return content


def _json(file: DataFile) -> Any:
  def table(pairs: list[tuple[str, Any]]) -> Table:
    made = Table(pairs)
    if len(made) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise UserError(f"{file.name}: key {twice!r} is there twice", hint="rename one of them")
    return made

  file.json()  # says line and column of what is wrong
  return json.loads(file.text(), object_pairs_hook=table)


def place(file: DataFile, table: Table, key: Any) -> str:
  """File and, where it is known, line of a key."""
  return f"{file.name}:{table.lines[key]}" if key in table.lines else file.name
