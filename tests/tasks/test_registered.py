import sys

import pytest

from mtx.errors import UserError
from mtx.tasks.registered import registered
from mtx.tasks.source import seqio

MODULE = """
import functools
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=0)

def rows(split, shuffle_files=False, mark=""):
  return tf.data.Dataset.from_tensor_slices({"inputs": [mark + "a", "b"], "targets": ["c", "d"]})

for name in ("mine_a", "mine_b", "mine_c", "mine_d"):
  feature = seqio.Feature(seqio.ByteVocabulary(9) if name == "mine_c" else VOCABULARY, add_eos=True)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(functools.partial(rows, mark=name), splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
  )
seqio.MixtureRegistry.add("mine", ["mine_a", "mine_d"], default_rate=1.0)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / "my_tasks.py").write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  yield "my_tasks"
  sys.modules.pop("my_tasks", None)
  seqio.MixtureRegistry.remove("mine")
  for name in ("mine_a", "mine_b", "mine_c", "mine_d"):
    seqio.TaskRegistry.remove(name)


def test_mixtures_of_a_module_in_the_working_directory(module):
  source = registered(module, "mine", "mine_b", metrics=("rouge_l", "exact_match"))
  assert (source.name, source.train, source.heldout) == ("my_tasks", "mine", "mine_b")
  assert source.categories == {"mine_a": "mine", "mine_d": "mine", "mine_b": "mine_b"}
  assert source.metrics["mine_a"] == ("rouge_l", "exact_match")
  assert source.vocabulary == seqio.ByteVocabulary(0)
  assert registered(module, "mine", "mine_b").metrics["mine_b"] == ("exact_match",)


def test_what_does_not_fit_is_named(module, tmp_path):
  with pytest.raises(UserError, match=r"registered.module is 'my_task': there is no such module"):
    registered("my_task", "mine", "mine")
  with pytest.raises(UserError, match=r"registered.heldout is 'mine_x': my_tasks registers no such .*\n.*`mine_"):
    registered(module, "mine", "mine_x")
  with pytest.raises(UserError, match=r"'mine_c' has another vocabulary"):
    registered(module, "mine", "mine_c")
  with pytest.raises(
    UserError, match=r"task 'mine_d' is listed in registered\.train, 'mine', and .*, 'mine_d', at once"
  ):
    registered(module, "mine", "mine_d")
  assert registered(module, "mine", "mine").heldout == "mine"  # judged by the tasks' own test splits
  with pytest.raises(UserError, match=r"registered.metrics: 'rouge' is not known\n.*`rouge_l`"):
    registered(module, "mine", "mine", metrics=("rouge",))
  with pytest.raises(
    UserError, match=r"registered.metrics: 'auroc' needs options, which .*\n.*exact_match, .*macro_f1"
  ):
    registered(module, "mine", "mine", metrics=("exact_match", "auroc"))
  (tmp_path / "broken_tasks.py").write_text("import no_such_package\n")
  with pytest.raises(ModuleNotFoundError, match="no_such_package"):
    registered("broken_tasks", "mine", "mine")
