"""Gin files: every mistake has a message that names it, its place and what would work; values arrive."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
import pytest

from mtx import ginfile
from mtx.errors import UserError
from mtx.gintext import ROOTS, Reader
from mtx.gintypes import misfits


@gin.configurable(module="lint")
def brew(leaves=None, *, minutes: int = 3, sugar: bool = False, hot: float = 0.5):
  return (leaves, minutes, sugar, hot)


@gin.configurable(module="lint", denylist=["kettle"])
def pour(kettle, cups: int = 1):
  return (kettle, cups)


@gin.configurable(module="lint")
def serve(tray=gin.REQUIRED, *, guests: int = gin.REQUIRED):
  return (tray, guests)


@gin.configurable(module="lint")
class Teapot:
  def __init__(self, litres: float = 1.0, **markings):
    self.litres, self.markings = litres, markings


Infuser = Callable[[int], float]
Anything = TypeVar("Anything")


@gin.configurable(module="lint", denylist=["seconds"])
def infuse(seconds: int) -> float:
  return seconds / 2


@gin.configurable(module="lint")
def infuser(slow: bool = False) -> Infuser:
  return lambda seconds: float(seconds + slow)


@gin.configurable(module="lint")
def untold():
  return None


@gin.configurable(module="lint")
class Strainer:
  def __init__(self, mesh: "float" = 0.1):
    self.mesh = mesh

  def __call__(self, seconds):
    return seconds * self.mesh


@gin.configurable(module="lint")
def blend(
  method: Infuser | None = None,
  always: Callable = infuse,
  herbs: Sequence[str] = (),
  parts: Mapping[str, float] | None = None,
  nested: Mapping[str, Mapping[str, int]] = {},
  ratio: tuple[int, int] = (1, 2),
  times: list[int] = (),
  steps: Sequence[Callable[[], Any] | Teapot] = (),
  label: str = "",
  unsaid: float = None,  # noqa: RUF013
  pot: Teapot | None = None,
  folder: str | Path = "",
  any_of: Anything | int = 1,
  cups: int | None = 3,
  **notes: int,
):
  return locals()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  gin.clear_config()


def write(folder, name="tea.gin", text=""):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return name


def mistake(folder, text, *bindings, **options):
  """(first line, rest) of the one message that loading gives."""
  with pytest.raises(UserError) as error:
    ginfile.load([write(folder, text=text)], bindings, **options)
  return str(error.value).split("\n  ", 1)


@pytest.mark.parametrize(
  ("text", "message", "hint"),
  [
    (
      "# tea\n\nbrew.minuts = 4\n",
      "binding `brew.minuts` at tea.gin:3 matches no parameter of `brew`",
      "did you mean `brew.minutes`?",
    ),
    (
      "green/brew.sugr = True",
      "binding `green/brew.sugr` at tea.gin:1 matches no parameter of `brew`",
      "did you mean `brew.sugar`?",
    ),
    (
      "brew.water = 4",
      "binding `brew.water` at tea.gin:1 matches no parameter of `brew`",
      "valid choices: hot, leaves, minutes, sugar",
    ),
    ("pourr.cups = 2", "binding `pourr.cups` at tea.gin:1 names no configurable", "did you mean `pour`?"),
    (
      "brw:\n  minutes = 2\n  hot = 1\n",
      "binding `brw.minutes` at tea.gin:2 names no configurable",
      "did you mean `brew`?",
    ),
    ("pour.kettle = 1", "binding `pour.kettle` at tea.gin:1 is not for gin to set", "valid choices: cups"),
    ("TIME = 4\nbrew.minutes = %TIMES", "macro `%TIMES` at tea.gin:2 is not defined", "did you mean `TIME`?"),
    (
      "A = [1, {'b': %B}]\nB = (%A,)\nbrew.leaves = %A",
      "macro `A` at tea.gin:1 contains itself",
      "give it a value",
    ),
    (
      "brew.leaves = [@poor()]",
      "reference `@poor()` at tea.gin:1 names no configurable",
      "did you mean `pour`?",
    ),
    (
      "brew.leaves = (\n  1,\n  @cold/serv)\n",
      "reference `@cold/serv` at tea.gin:1 names no configurable",
      "did you mean `serve`?",
    ),
    (
      "STEPS = 4\nSTEPZ = 5\nCOLOUR = 1\nbrew.minutes = %STEPS",
      "macro `STEPZ` at tea.gin:2 is used nowhere",
      "did you mean `STEPS`?",
    ),
    (
      "brew.leaves = %gin.REQUIRED",
      "binding `brew.leaves` at tea.gin:1 needs a value",
      "give it one in a gin file or with --gin.brew.leaves=VALUE",
    ),
    (
      "LEAVES = %gin.REQUIRED\nbrew.leaves = %LEAVES",
      "macro `LEAVES` at tea.gin:1 needs a value",
      "give it one in a gin file or with --gin.LEAVES=VALUE",
    ),
    (
      "serve.tray = 'silver'",
      "`serve` at tea.gin:1 needs `serve.guests`",
      "bind it in a gin file or with --gin.serve.guests=VALUE",
    ),
    (
      "\nbrew.leaves = @hot/serve()\nserve.tray = 1\ncold/serve.guests = 3",
      "`serve` at tea.gin:2 needs `hot/serve.guests`",
      "bind it in a gin file or with --gin.hot/serve.guests=VALUE",
    ),
    (
      "brew.minutes = three",
      "syntax error at tea.gin:1: `brew.minutes = three`",
      "'three' is no gin value: quote strings, write macros as %NAME and functions as @name",
    ),
    ("brew 3", "syntax error at tea.gin:1: `brew 3`", "Couldn't parse statement, expected ':' or '='."),
    ("import mtx.nowhere", "`import mtx.nowhere` at tea.gin:1 fails", "No module named 'mtx.nowhere'"),
    (
      "include 'pot.gin'",
      "gin file 'pot.gin' at tea.gin:1 is not there",
      None,
    ),
    ("include 'tea.gin'", "gin file 'tea.gin' at tea.gin:1 includes itself", "remove one of the includes"),
  ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(folder, text, message, hint):
  found = mistake(folder, text)
  assert found[0] == message
  assert hint is None or found[1] == hint


@pytest.mark.parametrize(
  ("binding", "message", "hint"),
  [
    (
      "brew.minuts=4",
      "binding `brew.minuts` at --gin.brew.minuts=4 matches no parameter of `brew`",
      "did you mean `brew.minutes`?",
    ),
    ("TIMES=4", "macro `TIMES` at --gin.TIMES=4 is used nowhere", "did you mean `TIME`?"),
    ("brew.leaves=@pour(", "syntax error at --gin.brew.leaves=@pour(", "a bracket or a quote is not closed"),
    ("brew.leaves='green", "syntax error at --gin.brew.leaves='green", None),
    ("brew.sugar=true", "syntax error at --gin.brew.sugar=true", "did you mean `True`?"),
    ("brew.minutes", "syntax error at --gin.brew.minutes", "a binding is written --gin.NAME=VALUE"),
    ("3=4", "syntax error at --gin.3=4", "Unexpected token."),
    ("brew.minutes=%TME", "macro `%TME` at --gin.brew.minutes=%TME is not defined", "did you mean `TIME`?"),
  ],
)
def test_mistakes_on_the_command_line_name_the_flag(folder, binding, message, hint):
  found = mistake(folder, "TIME = 4\nbrew.minutes = %TIME", f"--gin.{binding}")
  assert found[0] == message
  assert hint is None or found[1] == hint


def test_unclosed_brackets_and_quotes_are_named(folder):
  for text in ("brew.leaves = [1,\n  2\n", "brew.leaves = '''green\n"):
    message, hint = mistake(folder, text)
    assert message.startswith("syntax error at tea.gin:") and hint == "a bracket or a quote is not closed"


@pytest.mark.parametrize(
  ("text", "message", "hint"),
  [
    ("blend.method = @infuse()", "`blend.method` at tea.gin:1 is `@infuse()`",
     "expected a function, `@name` or None: `@infuse` without ()"),
    ("blend.always = @green/Teapot()", "`blend.always` at tea.gin:1 is `@green/Teapot()`",
     "expected a function, `@name`: `@green/Teapot` without ()"),
    ("blend.always = 'infuse'", "`blend.always` at tea.gin:1 is `'infuse'`", "expected a function, `@name`: `@infuse`"),
    ("blend.always = None", "`blend.always` at tea.gin:1 is `None`", "expected a function, `@name`"),
    ("brew.minutes = '3'", "`brew.minutes` at tea.gin:1 is `'3'`", "expected a whole number: `3` without quotes"),
    ("brew.minutes = 'long'", "`brew.minutes` at tea.gin:1 is `'long'`", "expected a whole number"),
    ("brew.minutes = 1e3", "`brew.minutes` at tea.gin:1 is `1000.0`", "expected a whole number: `1000`"),
    ("brew.minutes = 2.5", "`brew.minutes` at tea.gin:1 is `2.5`", "expected a whole number"),
    ("brew.minutes = None", "`brew.minutes` at tea.gin:1 is `None`", "expected a whole number"),
    ("brew.hot = '0.5'", "`brew.hot` at tea.gin:1 is `'0.5'`", "expected a number: `0.5` without quotes"),
    ("brew.hot = @infuser", "`brew.hot` at tea.gin:1 is `@infuser`", "expected a number: `@infuser()` calls it"),
    ("brew.sugar = 'False'", "`brew.sugar` at tea.gin:1 is `'False'`",
     "expected True or False: `False` without quotes"),
    ("brew.sugar = [True]", "`brew.sugar` at tea.gin:1 is `[True]`", "expected True or False"),
    ("Strainer.mesh = 'fine'", "`Strainer.mesh` at tea.gin:1 is `'fine'`", "expected a number"),
    ("green/blend.label = 7", "`green/blend.label` at tea.gin:1 is `7`", "expected a string: `'7'`"),
    ("blend.folder = 7", "`blend.folder` at tea.gin:1 is `7`", "expected a string or a path: `'7'`"),
    ("blend.herbs = {'mint': 1}", "`blend.herbs` at tea.gin:1 is `{'mint': 1}`",
     "expected a list, each item a string"),
    ("blend.herbs = ['mint', 7]", "`blend.herbs` at tea.gin:1 is `['mint', 7]` with `7` in it",
     "expected a string: `'7'`"),
    ("blend.herbs = @infuse", "`blend.herbs` at tea.gin:1 is `@infuse`",
     "expected a list, each item a string: `[@infuse]`"),
    ("blend.times = '12'", "`blend.times` at tea.gin:1 is `'12'`", "expected a list, each item a whole number"),
    ("blend.steps = @infuser", "`blend.steps` at tea.gin:1 is `@infuser`", "expected a list: `[@infuser]`"),
    ("blend.parts = 0.5", "`blend.parts` at tea.gin:1 is `0.5`", "expected a mapping, {'name': value} or None"),
    ("blend.parts = {'mint': '1'}", "`blend.parts` at tea.gin:1 is `{'mint': '1'}` with `'1'` in it",
     "expected a number: `1` without quotes"),
    ("blend.nested = {'a': {'b': 0.5}}", "`blend.nested` at tea.gin:1 is `{'a': {'b': 0.5}}` with `0.5` in it",
     "expected a whole number"),
    ("blend.ratio = (1, 2, 3)", "`blend.ratio` at tea.gin:1 is `(1, 2, 3)`",
     "expected (a whole number, a whole number)"),
    ("blend.cups = 'two'", "`blend.cups` at tea.gin:1 is `'two'`", "expected a whole number or None"),
    ("\nTIME = %LONG\nLONG = 'x'\nbrew.minutes = %TIME", "`brew.minutes` at tea.gin:4 is `%TIME`, `'x'` at tea.gin:3",
     "expected a whole number"),
    ("HERB = 7\nblend.herbs = ['mint', %HERB]", "`blend.herbs` at tea.gin:2 is `['mint', %HERB]` with `7` in it", None),
  ],
)  # fmt: skip
def test_values_that_an_annotation_forbids_are_named(folder, text, message, hint):
  found = mistake(folder, text)
  assert found[0] == f"binding {message}"
  assert hint is None or found[1] == hint


def test_a_number_for_a_string_among_the_flags_is_quoted_for_the_shell(folder):
  found = mistake(folder, "", "--gin.blend.label=7")
  assert found == ["binding `blend.label` at --gin.blend.label=7 is `7`", "expected a string: `\"'7'\"`"]


@pytest.mark.parametrize(
  "value",
  [
    "method = None", "method = @infuse", "method = @infuser()", "method = @untold()",
    "always = @cold/Strainer()", "always = @Strainer",
    "always = @untold()", "herbs = ('mint', 'sage')", "herbs = 'mint'", "herbs = @untold()", "parts = {'mint': 1}",
    "parts = None", "parts = @untold()", "nested = {}", "ratio = [1, 2]", "times = (1, True)",
    "steps = [@infuse, @Teapot()]", "label = @untold()", "unsaid = None", "unsaid = 1", "pot = 'tall'", "folder = '.'",
    "any_of = 'x'", "cups = None", "cups = %gin.REQUIRED\nblend.cups = 1", "extra = 'free'",
    "label = %LABEL\nLABEL = 'x'",
  ],
)  # fmt: skip
def test_values_that_no_annotation_forbids_pass(folder, value):
  ginfile.load([write(folder, text=f"blend.{value}\nbrew.hot = 1\nbrew.sugar = 0\nbrew.leaves = @infuse()")])


def test_configs_of_the_repository_bind_what_their_parameters_take(monkeypatch):
  from mtx.run import register

  register()
  monkeypatch.chdir(ROOTS[0])
  files = sorted(path.relative_to(ROOTS[0]).as_posix() for path in (ROOTS[0] / "configs").rglob("*.gin"))
  assert len(files) > 5
  for file in files:
    reader = Reader()
    reader.file(file)
    assert not reader.problems and not list(misfits(reader.bindings)), file


def test_missing_gin_file_names_a_near_one(folder):
  write(folder, "configs/run/breakfast.gin")
  with pytest.raises(UserError) as error:
    ginfile.load(["configs/run/brekfast.gin"])
  assert error.value.message == (
    "gin file 'configs/run/brekfast.gin' at --gin_file=configs/run/brekfast.gin is not there"
  )
  assert error.value.hint.startswith("did you mean `configs/run/breakfast.gin`")


def test_all_mistakes_are_listed_and_nothing_is_bound(folder):
  ginfile.load([write(folder, text="brew.minutes = 7")])
  found = mistake(folder, "brew.minuts = 4\nbrew.minutes = 5\nbrew.hot = %HEAT\ninclude 'gone.gin'\n")
  rest = found[1].splitlines()
  assert found[0] == "gin file 'gone.gin' at tea.gin:4 is not there"
  assert "  binding `brew.minuts` at tea.gin:1 matches no parameter of `brew`" in rest
  assert "    did you mean `brew.minutes`?" in rest
  assert "  macro `%HEAT` at tea.gin:3 is not defined" in rest
  assert brew() == (None, 7, False, 0.5)


def test_configurables_that_run_anyway_are_asked_for_their_values(folder):
  assert mistake(folder, "brew.minutes = 4", called=["serve"])[0] == "`serve` needs `serve.tray`"
  ginfile.load([write(folder, text="serve.tray = 1\nserve.guests = 2")], called=["serve"])
  assert serve() == (1, 2)


def test_a_required_value_may_come_from_the_command_line(folder):
  file = write(
    folder, text="LEAVES = %gin.REQUIRED\nbrew.leaves = %LEAVES\nserve.tray = 2\nserve.guests = %gin.REQUIRED"
  )
  ginfile.load([file], ["LEAVES=../data", "serve.guests=3"])
  assert brew()[0] == "../data" and serve() == (2, 3)
  ginfile.load([file], ["LEAVES='none'", "serve.guests=3"])
  assert brew()[0] == "none"  # in quotes, no slip of the pen


def test_comments_blocks_and_values_over_several_lines(folder):
  text = """
# Tea for %NOBODY.
LEAVES = {   # a comment
    'green': (1, -2.5),
    'black': [True, None, 'a' 'b'],
}
brew:
  leaves = %LEAVES  # of two kinds
  minutes = \\
      8
cold/brew.minutes = 600
Teapot.any_marking = r'\\d+'
"""
  ginfile.load([write(folder, text=text)])
  leaves = {"green": (1, -2.5), "black": [True, None, "ab"]}
  assert brew() == (leaves, 8, False, 0.5)
  with gin.config_scope("cold"):
    assert brew()[1] == 600
  assert Teapot().markings == {"any_marking": r"\d+"}
  assert ginfile.macro("LEAVES") == leaves


@pytest.mark.parametrize(
  ("value", "read"),
  [
    ("4", 4), ("-1e-3", -1e-3), ("None", None), ("[1, 'a']", [1, "a"]), ("'quoted'", "quoted"),
    ("plain", "plain"), ("../data", "../data"), ("/a b/c", "/a b/c"),
    ("a=b", "a=b"), ("", ""), ("%TIME", 4), ("10k", "10k"),
  ],
)  # fmt: skip
def test_command_line_wins_and_takes_plain_strings(folder, value, read):
  file = write(folder, text="TIME = 4\nbrew.leaves = 1\nbrew.minutes = %TIME")
  ginfile.load([file], [f"--gin.brew.leaves={value}", f"lint.Teapot.any_marking={value}"])
  assert brew()[0] == read and Teapot().markings == {"any_marking": read}


def test_last_binding_wins_over_includes_and_earlier_files(folder):
  write(folder, "configs/base.gin", "brew.minutes = 1\nbrew.hot = 1.0\nTIME = 3\nbrew.leaves = %TIME")
  first = write(folder, "first.gin", "brew.hot = 9.0\ninclude 'configs/base.gin'\nlint.brew.minutes = 2")
  second = write(folder, "second.gin", "brew.sugar = True")
  ginfile.load([first, second], ["TIME=5"])
  assert brew() == (5, 2, True, 1.0)
  assert ginfile.where("brew.minutes") == ginfile.where("lint.brew.minutes") == "first.gin:3"
  assert ginfile.where("brew.hot") == "configs/base.gin:2"
  assert ginfile.where("brew.sugar") == "second.gin:1"
  assert ginfile.where("brew.leaves") == ginfile.where("TIME") == "--gin.TIME=5"
  assert ginfile.where("pour.cups") == ginfile.where("NOTHING") == "its default"


def test_a_value_that_is_overridden_may_name_what_is_not_there(folder):
  """So that a provider whose libraries are not installed can be switched off by a flag."""
  ginfile.load([write(folder, text="brew.leaves = @not_installed")], ["brew.leaves=None"])
  assert brew()[0] is None


def test_files_are_found_beside_the_package_and_under_the_prefix(folder, monkeypatch):
  from mtx import gintext

  write(folder, "repository/configs/a.gin", "include 'configs/b.gin'\nbrew.minutes = 11")
  write(folder, "prefix/configs/b.gin", "brew.sugar = True")
  monkeypatch.setattr(gintext, "ROOTS", (folder / "repository", folder / "prefix"))
  ginfile.load(["configs/a.gin"])
  assert brew() == (None, 11, True, 0.5)
  assert ginfile.where("brew.sugar") == "configs/b.gin:1"


def test_imports_of_a_file_register_before_it_is_linted(folder, monkeypatch):
  write(folder, "tea_plugin.py", "import gin\n\n@gin.configurable\ndef steep(minutes=1):\n  return minutes\n")
  monkeypatch.syspath_prepend(str(folder))
  ginfile.load([write(folder, text="import tea_plugin\nbrew.leaves = @steep()\nsteep.minutes = 6")])
  assert brew()[0] == 6


def test_loading_again_replaces_what_was_bound(folder):
  ginfile.load([write(folder, text="brew.minutes = 7\nTIME = 1")])
  ginfile.load([write(folder, text="brew.hot = 0.25")])
  assert brew() == (None, 3, False, 0.25)
  with pytest.raises(UserError, match="macro `TIME` is not defined"):
    ginfile.macro("TIME")


def test_operative_config_loads_to_the_same_values(folder):
  text = "TIME = 4\nbrew.minutes = %TIME\nbrew.leaves = @pour\npour.cups = 2\nserve.tray = 1"
  ginfile.load([write(folder, text=text)], ["serve.guests=2"])
  _, *values = brew()
  text = ginfile.operative()
  assert ginfile.count_bindings(text) == 5  # TIME and the four parameters of brew; nothing else was called
  ginfile.load([write(folder, "operative.gin", text)])
  assert brew()[1:] == tuple(values) and ginfile.count_bindings(ginfile.operative()) == 5
