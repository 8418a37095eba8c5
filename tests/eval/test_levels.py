"""The level of a task follows from what is trained on; what a protocol names and nothing has is an error."""

import pytest

from mtx.data.cache import CachedMixture, CachedTask
from mtx.errors import UserError
from mtx.eval.levels import judged_tasks


def mixture(vocabulary, *tasks, splits=("train", "test")):
  made = tuple(CachedTask(n, c, ("exact_match", "rouge_l"), n, {s: [0] for s in splits}) for n, c in tasks)
  return CachedMixture("m", made, (), vocabulary)


@pytest.fixture
def mixtures(vocabulary):
  train = mixture(vocabulary, ("sort", "lists"), ("copy", "lists"), ("upper", "words"))
  return train, mixture(vocabulary, ("reverse", "lists"), ("translate", "languages"))


def test_three_levels(mixtures):
  found, left_out = judged_tasks(*mixtures)
  assert {each.task.name: (each.level, each.split) for each in found} == {
    "reverse": ("task", "heldout"),
    "translate": ("category", "heldout"),
    "sort": ("instance", "train"),
    "copy": ("instance", "train"),
    "upper": ("instance", "train"),
  }
  assert not left_out
  only, _ = judged_tasks(*mixtures, levels=("task", "instance"), tasks=("*r*",))
  assert {each.task.name for each in only} == {"reverse", "sort", "upper"}


def test_tasks_that_can_not_be_judged_are_told(mixtures, vocabulary):
  bare = mixture(vocabulary, ("bare", "lists"), splits=("train",))
  found, left_out = judged_tasks(bare, mixtures[1])
  assert left_out == ["bare"] and {each.task.name for each in found} == {"reverse", "translate"}


def test_tasks_that_are_one_data_set_in_several_prompts(vocabulary):
  held = mixture(vocabulary, ("ps_rte_en_guess", "nli"), ("ps_rte_en_does_it", "nli"), ("other", "nli"))
  train = mixture(vocabulary, ("ps_x_en_guess", "qa"))
  names = {"own_prompts": r"ps_(?P<dataset>[a-z]+_en)_(?P<prompt>.+)", "benchmarks": {"ps_*": "P3"}}
  found, _ = judged_tasks(train, held, **names)
  assert [(e.dataset, e.prompt, e.benchmark) for e in found] == [
    ("rte_en", "guess", "P3"),
    ("rte_en", "does_it", "P3"),
    ("other", "", ""),
    ("x_en", "guess", "P3"),
  ]


@pytest.mark.parametrize(
  "asked, said, hint",
  [
    ({"metrics": ("rouge_1",)}, "`protocol.metrics`: task reverse has no metric 'rouge_1'", "rouge_l"),
    ({"levels": ("instances",)}, "`protocol.levels`: no level 'instances'", "instance"),
    ({"tasks": ("sorts",)}, "`protocol.tasks`: 'sorts' matches no task", "sort"),
    ({"levels": ("category",), "tasks": ("sort",)}, "no tasks to judge", "category, instance, task"),
    ({"own_prompts": "(?P<dataset>.*"}, "no regular expression", None),
    ({"own_prompts": "(?P<dataset>.*)"}, "lacks the groups", None),
  ],
)
def test_what_is_not_there(mixtures, asked, said, hint):
  with pytest.raises(UserError) as error:
    judged_tasks(*mixtures, **asked)
  assert said in error.value.message and (hint is None or hint in error.value.hint)
