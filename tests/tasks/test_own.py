"""Your own tasks: a folder and its manifest. Everything that may be wrong in either is said at once, with its place."""

import gzip
import json
import logging
import pickle
import textwrap

import gin
import pytest

from mtx.errors import UserError
from mtx.tasks import own as module
from mtx.tasks.own import own
from mtx.tasks.task import Reading


def rows(task, split="train", **reading) -> list[dict]:
  return list(task.rows(split, Reading(**reading)))


def review(number: int, **changes) -> dict:
  label = ("negative", "positive")[number % 2]
  return {"title": f"No. {number}", "text": f"It was {label}.", "label": label} | changes


@pytest.fixture
def write(tmp_path):
  """write(manifest, name=content, ...): the folder. Dots of names are written as two underscores."""

  def write(manifest: str, files: dict[str, str | bytes | list]) -> str:
    root = tmp_path / "mine"
    root.mkdir(exist_ok=True)
    (root / "tasks.yaml").write_text(textwrap.dedent(manifest), encoding="utf-8")
    for name, content in files.items():
      if isinstance(content, list):
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)
      (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(root)

  return write


REVIEWS = [review(n) for n in range(40)]
MANIFEST = """
  sentiment:
    files: reviews.jsonl
    instruction: Is this review positive or negative?
    fields: [title, text]
    target: label
"""


def test_the_example_of_the_docstring_works_as_it_stands(write):
  """A user writes it from there alone."""
  lines = module.__doc__.split("lies beside the data:\n")[1].split("\n\nEach line")[0]
  assert len(lines.strip().splitlines()) == 10
  csv = "title,text,label\nSo so,I slept well.,negative\n"
  path = write(
    lines,
    {
      "reviews.jsonl": REVIEWS,
      "reviews-test.csv": csv,
      "news.en.txt": "Good morning.\nRain, again.\n",
      "news.de.txt": "Guten Morgen.\nSchon wieder Regen.\n",
    },
  )
  collection = own(path)
  sentiment, german = collection.train
  assert (sentiment.name, sentiment.splits) == ("own_sentiment", {"train": 40, "test": 1})
  assert rows(sentiment, "test") == [
    {
      "inputs": "Is this review positive or negative?\n\ntitle: So so\ntext: I slept well.",
      "targets": "negative",
      "options": ["positive", "negative"],
    }
  ]
  assert [row["targets"] for row in rows(sentiment)] == [record["label"] for record in REVIEWS]
  assert rows(german) == [
    {"inputs": "Translate to German: Good morning.", "targets": "Guten Morgen."},
    {"inputs": "Translate to German: Rain, again.", "targets": "Schon wieder Regen."},
  ]


def test_every_key_is_described_where_the_example_is():
  described = module.__doc__.split("The keys of a task:")[1]
  assert all(f" {key}" in described for key in module.KEYS)


def test_all_keys(write):
  records = [{"q": "2 + 2", "say": ["4", "four"], "wrong": ["4", "5"], "n": 3}]
  path = write(
    """
    sums:
      files: {train: [a.jsonl, b.jsonl.gz], validation: a.jsonl}
      template: "{{ q }}{% if n > 2 %}!{% endif %}"
      references: say
      options: wrong
      metrics: [exact_match_normalized, rouge_l]
      category: maths
      language: de
    judged:
      files: a.jsonl
      fields: q
      target: "{{ say | last }} ({{ n }})"
      heldout: true
    """,
    {"a.jsonl": records, "b.jsonl.gz": gzip.compress(json.dumps(records[0]).encode())},
  )
  collection = own(path)
  (task,), (judged,) = collection.train, collection.heldout
  assert task.splits == {"train": 2, "validation": 1}
  assert (task.category, task.language, task.metrics) == ("maths", "de", ("exact_match_normalized", "rouge_l"))
  expected = {"inputs": "2 + 2!", "targets": "4", "references": ["4", "four"], "options": ["4", "5"]}
  assert rows(pickle.loads(pickle.dumps(task))) == [expected] * 2
  assert (judged.splits, judged.category, judged.metrics) == ({"test": 1}, "own", ("exact_match",))
  assert rows(judged, "test") == [{"inputs": "2 + 2", "targets": "four (3)"}]


def test_real_data_of_twelve_languages(shared, write):
  """NusaX: CSV files as they are released."""
  files = {
    f"{language}-{split}.csv": (shared / f"nusax/sentiment/{language}/{split}.csv").read_bytes()
    for language in ("javanese", "buginese")
    for split in ("train", "test")
  }
  manifest = "".join(
    f"{language}:\n  files: {{train: {language}-train.csv, test: {language}-test.csv}}\n  language: {tag}\n"
    "  fields: [text]\n  target: label\n  options: [negative, neutral, positive]\n  validation: 0.1\n"
    for language, tag in (("javanese", "jv"), ("buginese", "bug"))
  )
  for task in own(write(manifest, files)).train:
    assert task.splits == {"train": 450, "validation": 50, "test": 400}
    assert {split: len(rows(task, split)) for split in task.splits} == task.splits
    assert {row["targets"] for row in rows(task)} == {"negative", "neutral", "positive"}


def test_parquet(write, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow

  path = write(MANIFEST.replace("jsonl", "parquet"), {})
  parquet.write_table(pyarrow.Table.from_pylist(REVIEWS), tmp_path / "mine" / "reviews.parquet")
  (task,) = own(path).train
  assert task.splits == {"train": 40} and rows(task)[3]["targets"] == "positive"
  bad = [*REVIEWS, review(40, label=None)]
  parquet.write_table(pyarrow.Table.from_pylist(bad), tmp_path / "mine" / "reviews.parquet")
  with pytest.raises(UserError, match=r"mine/reviews\.parquet: row 41: field 'label' is null"):
    own(path)


def test_a_manifest_may_be_json(write, tmp_path):
  path = write("", {"reviews.jsonl": REVIEWS})
  (tmp_path / "mine" / "tasks.yaml").unlink()
  content = {"sentiment": {"files": "reviews.jsonl", "fields": ["text"], "target": "label"}}
  (tmp_path / "mine" / "tasks.json").write_text(json.dumps(content, indent="\t"))
  assert own(path).train[0].splits == {"train": 40}


def test_shares_are_exact_disjoint_and_stay_when_the_file_is_sorted(write):
  manifest = MANIFEST + "    validation: 0.1\n    test: 0.25\n"

  def splits(records):
    (task,) = own(write(manifest, {"reviews.jsonl": records})).train
    found = {split: [row["inputs"] for row in rows(task, split)] for split in task.splits}
    assert {split: len(inputs) for split, inputs in found.items()} == task.splits
    return {split: set(inputs) for split, inputs in found.items()}

  found = splits(REVIEWS)
  assert {split: len(inputs) for split, inputs in found.items()} == {"train": 26, "validation": 4, "test": 10}
  assert len(set.union(*found.values())) == 40
  assert splits(REVIEWS[::-1]) == found


def test_equal_inputs_do_not_fall_on_two_sides(write):
  records = [review(n % 20) | {"source": n} for n in range(60)]
  (task,) = own(write(MANIFEST + "    validation: 0.2\n", {"reviews.jsonl": records})).train
  train, validation = ({row["inputs"] for row in rows(task, split)} for split in ("train", "validation"))
  assert not train & validation and len(train) + len(validation) == 20
  assert task.splits["train"] + task.splits["validation"] == 60 and 6 <= task.splits["validation"] <= 14


def test_the_instruction_does_not_decide_about_the_split(write):
  ids = []
  for manifest in (MANIFEST, MANIFEST.replace("Is this review", "Say whether it is")):
    (task,) = own(write(manifest + "    validation: 0.2\n", {"reviews.jsonl": REVIEWS})).train
    ids.append([row["inputs"].split("title")[1] for row in rows(task, "validation")])
  assert ids[0] == ids[1]


def test_lines_of_the_manifest_are_no_content(write):
  """A moved line does not make a cache stale; a changed instruction does."""
  forms = [
    own(write(manifest, {"reviews.jsonl": REVIEWS})).train[0].rows.keywords["form"].fingerprint()
    for manifest in (MANIFEST, "# mine\n" + MANIFEST, MANIFEST.replace("positive or", "nice or"))
  ]
  assert forms[0] == forms[1] != forms[2]


def test_it_is_bound_by_gin(write):
  path = write(MANIFEST, {"reviews.jsonl": [*REVIEWS, {}]})
  gin.parse_config(f"own.path = {path!r}\nown.bad_rows = 1")
  assert own().train[0].splits == {"train": 40}


def fails(path: str, message: str, hint: str = "", **kwargs) -> None:
  with pytest.raises(UserError, match=message) as raised:
    own(path, **kwargs)
  assert hint in raised.value.hint, raised.value.hint


# What is added to or replaced in MANIFEST -> message, hint.
BAD_MANIFESTS = [
  (("target: label", "targt: label"), r"mine/tasks\.yaml:6: task 'sentiment': 'targt' is not known", "`target`"),
  (("reviews.jsonl", "review.jsonl"), r"tasks\.yaml:3: task 'sentiment': 'files' names 'review\.jsonl', which is not "
   "in mine/", "`reviews.jsonl`"),
  (("files: reviews.jsonl", "files: {trian: reviews.jsonl}"), "'files' has a split 'trian'", "`train`"),
  (("files: reviews.jsonl", "files: {test: reviews.jsonl}"), "'files' has no split 'train', and the task is trained on",
   "splits: test"),
  (("files: reviews.jsonl", "files: {train: 3}"), "'files' of split 'train' is 3", "a file or a list"),
  (("files: reviews.jsonl", "heldout: false"), "task 'sentiment' has neither files nor inputs and targets", "files:"),
  (("target: label", "target: label\n    inputs: a.txt\n    targets: b.txt"), "has both files and inputs", ""),
  (("files: reviews.jsonl", "inputs: reviews.jsonl"), "'inputs' is there without 'targets'", "two files"),
  (("target: label", "target: lable"), r"task 'sentiment': 'target' reads field 'lable', which mine/reviews\.jsonl "
   "has not", "`label`"),
  (("[title, text]", "[title, txt]"), "'fields' reads field 'txt', which", "`text`"),
  (("target: label", "target: label\n    references: lables"), "'references' reads field 'lables'", "`label`"),
  (("target: label", "target: label\n    options: lables"), "'options' reads field 'lables'", "`label`"),
  (("target: label", "target: '{{ labl }}'"), "'target' reads field 'labl'", "`label`"),
  (("target: label", "target: '{{ label'"), r"task 'sentiment': target: line 1 of the template", "Jinja"),
  (("target: label", "target: '{{ label.__class__ }}'"), "reaches for __class__: it will not be run", ""),
  (("target: label", "template: '{{ text }}'\n    target: label"), "'template' stands beside fields", ""),
  (("fields: [title, text]", "category: a"), "task 'sentiment' has neither fields nor a template", "fields:"),
  (("target: label", "category: a"), "task 'sentiment' has no target", "target:"),
  (("target: label", "target: label\n    metrics: rouge_L"), r"tasks\.yaml:7: task 'sentiment': 'metrics' names "
   "'rouge_L', which is not known", "`rouge_l`"),
  (("target: label", "target: label\n    language: German"), "'language' is 'German'", "BCP 47"),
  (("target: label", "target: label\n    heldout: 1"), "'heldout' is 1", "true or false"),
  (("target: label", "target: label\n    options: [true, false]"), "'options' lists True", "in quotes"),
  (("target: label", "target: label\n    validation: 5"), "'validation' is 5", "a share such as 0.05"),
  (("target: label", "target: label\n    validation: 1.5"), "'validation' is 1.5", "between 0 and 1"),
  (("target: label", "target: label\n    validation: 0.5\n    test: 0.5"), "'test' and validation are 1 of train", ""),
  (("files: reviews.jsonl", "files: {train: reviews.jsonl, test: reviews.jsonl}\n    test: 0.1"),
   "'test' is a share, and the split has files of its own", ""),
  (("target: label", "target: label\n    target: text"), r"tasks\.yaml:7: column 5: key 'target' is there twice", ""),
  (("sentiment:", "sentiment: 3\nmore:"), r"tasks\.yaml:2: task 'sentiment' is int, not a mapping", "its keys are"),
  (("files: reviews.jsonl", "files: reviews.txt"), "names 'reviews.txt', which is not in mine/", "`reviews.jsonl`"),
  (("files: reviews.jsonl", "files: odd.xlsx"), r"mine/odd\.xlsx: files that end with '\.xlsx' are not read", ".csv"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message", "hint"), BAD_MANIFESTS)
def test_what_is_wrong_in_the_manifest_is_named(write, change, message, hint):
  manifest = textwrap.dedent(MANIFEST).replace("\n  ", "\n    ").replace(*change)
  fails(write(manifest, {"reviews.jsonl": REVIEWS, "odd.xlsx": "x"}), message, hint)


BAD_ROWS = [
  ('{"title": "a", "text" "b"}', r"mine/reviews\.jsonl:41: column 23: not JSON"),
  ('{"title": "a", "text": "b"}', r"reviews\.jsonl:41: no field 'label' \(fields: title, text\)"),
  (b'{"title": "a", "text": "\xe4"}', r"reviews\.jsonl:41: not UTF-8 at column 25"),
  ('{"title": "a", "text": "b", "label": null}', r"reviews\.jsonl:41: field 'label' is null"),
  ('{"title": "a", "text": "b", "label": NaN}', r"reviews\.jsonl:41: field 'label' is NaN"),
  ('{"title": "a", "text": "b", "label": " "}', r"reviews\.jsonl:41: its target is empty"),
  ('{"title": "a", "text": ["b"], "label": "c"}', r"reviews\.jsonl:41: field 'text' is list, not text or a number"),
  ('{"title": "", "text": "", "label": "c"}', r"reviews\.jsonl:41: its input is empty"),
  ("[1]", r"reviews\.jsonl:41: not an object but list"),
]


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_bad_row_is_found_at_once_or_counted(write, caplog, line, message):
  good = "".join(json.dumps(record) + "\n" for record in REVIEWS).encode()
  content = good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + json.dumps(review(41)).encode()
  path = write(MANIFEST, {"reviews.jsonl": content})
  fails(path, message, "own.bad_rows = 100 and build.bad_rows = 100")
  with caplog.at_level(logging.WARNING):
    (task,) = own(path, bad_rows=1).train
  assert task.splits == {"train": 41}
  assert "task sentiment, split train: 1 rows of mine/reviews.jsonl left out, the first: mine/reviews.jsonl:41: " in (
    caplog.text
  )
  with pytest.raises(UserError, match=message):
    rows(task)
  reading = Reading(budget=1)
  assert len(list(task.rows("train", reading))) == 41 and len(reading.bad) == 1


def test_a_target_that_is_no_option_and_references_that_are_no_list(write):
  manifest = MANIFEST + "    options: [positive]\n"
  fails(write(manifest, {"reviews.jsonl": REVIEWS}), r"jsonl:1: its target 'negative' is none of the options")
  manifest = MANIFEST + "    references: title\n"
  fails(write(manifest, {"reviews.jsonl": REVIEWS}), r"jsonl:1: field 'title' is 'No\. 0', not a list of texts")


def test_a_templates_missing_element_is_a_bad_row(write):
  manifest = "t:\n  files: a.jsonl\n  template: '{{ q }} {{ a[0] }}'\n  target: q\n"
  path = write(manifest, {"a.jsonl": [{"q": "x", "a": ["y"]}, {"q": "x", "a": []}]})
  fails(path, r"a\.jsonl:2: lacks an element that the template uses: reads 0 of \[\]")
  assert rows(own(path, bad_rows=1).train[0], budget=1) == [{"inputs": "x y", "targets": "x"}]


def test_an_empty_split_is_named(write):
  fails(
    write(MANIFEST, {"reviews.jsonl": "\n"}),
    r"tasks\.yaml:2: task 'sentiment': split 'train' \(mine/reviews\.jsonl\) has no usable row",
  )
  fails(
    write(MANIFEST + "    validation: 0.5\n", {"reviews.jsonl": REVIEWS[:1]}),
    r"tasks\.yaml:7: task 'sentiment': 'validation' leaves no row for 'validation': mine/reviews\.jsonl has 1",
  )


PARALLEL = "t:\n  inputs: a.txt\n  targets: b.txt\n"


def test_parallel_texts(write):
  path = write(PARALLEL, {"a.txt": "one\r\ntwo\u2028too\n", "b.txt": "eins\nzwei\n"})
  assert rows(own(path).train[0]) == [
    {"inputs": "one", "targets": "eins"}, {"inputs": "two\u2028too", "targets": "zwei"},
  ]  # fmt: skip
  manifest = "t:\n  inputs: {train: a.txt, test: [a.txt, b.txt]}\n  targets: {train: b.txt, test: [b.txt, a.txt]}\n"
  assert own(write(manifest, {})).train[0].splits == {"train": 2, "test": 4}


def test_parallel_texts_that_are_not(write):
  fails(
    write(PARALLEL, {"a.txt": "1\n2\n3\n", "b.txt": "1\n2"}),
    r"mine/a\.txt has 3 lines and mine/b\.txt 2: they are not parallel", "line n",
  )  # fmt: skip
  fails(write(PARALLEL, {"a.txt": "1\n\n3\n", "b.txt": "1\n2\n3"}), r"mine/a\.txt:2: its input is empty")
  fails(write(PARALLEL, {"a.txt": "1\n2\n", "b.txt": "1\n\n"}), r"mine/a\.txt:2: its target is empty")
  fails(write(PARALLEL, {"a.txt": "1\n", "b.txt": b"\xe4\n"}), r"mine/b\.txt is not UTF-8: byte 0, line 1")
  manifest = "t:\n  inputs: {train: a.txt, test: a.txt}\n  targets: {train: b.txt}\n"
  fails(write(manifest, {}), r"tasks\.yaml:3: task 't': 'targets' has other splits than inputs")


def test_folders_that_are_none_and_tasks_of_one_name(write, tmp_path):
  fails("/gone", r"own\.path is '/gone': there is no such folder")
  fails(str(tmp_path), r"it holds no tasks\.yaml", "pydoc mtx.tasks.own")
  task = "\n  files: reviews.jsonl\n  fields: text\n  target: label\n"
  fails(
    write(f"a b:{task}A_b:{task}", {"reviews.jsonl": REVIEWS}),
    r"tasks\.yaml:5: tasks 'a b' and 'A_b' are both called 'own_a_b'",
  )
  fails(write("{}", {}), r"mine/tasks\.yaml names no task", "pydoc")
