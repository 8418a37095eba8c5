"""Mixtures by name: from the cache, or built into it by the source that a gin file names."""

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mtx import ginfile
from mtx.data.cache import CachedMixture, open_mixture, open_source, sources, write_source
from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import Collection


class Mixtures:
  """Opens caches by name, building what is stale if a provider is there.

  Args:
    source: a provider or what it returns; or the name of one whose tasks are in the cache already.
    cache_dir: tokenised tasks, shared by all runs.
    note: called with lines for the user.
    jobs: does the jobs of a build, see `mtx.data.build.build_mixture`; None: here.

  Raises:
    UserError: no source, one that is not in the cache, or a cache that can not be read or written.
  """

  def __init__(self, source: Any, cache_dir: str, note: Callable[[str], Any], jobs: Callable | None = None):
    source = _called(source)
    if source is None:
      raise UserError("binding `train.source` is missing.", hint="for example `train.source = @procedural`")
    if isinstance(source, Collection):
      from mtx.tasks.mixture import mixture  # brings SeqIO

      source = mixture([source])
    if not isinstance(source, str) and not hasattr(source, "train"):
      raise UserError(
        f"binding `train.source` at {ginfile.where('train.source')} gives {type(source).__name__}, not tasks.",
        hint="name one provider, `train.source = @superni`, or `@mixture`, whose `mixture.sources` are several",
      )
    self._cache, self._note, self._jobs = Path(cache_dir), note, jobs
    self._open: dict[str, CachedMixture] = {}
    self._source = None if isinstance(source, str) else source
    if self._source is None:
      self._names = open_source(self._cache, source)
    else:
      self._names = {"train": source.train, "heldout": source.heldout, **source.parts}
      write_source(self._cache, source.name, self._names)

  @classmethod
  def cached(cls, cache_dir: str, note: Callable[[str], Any], mixture: str = "") -> "Mixtures":
    """Whatever lies in a cache, by the names that it has there; no source, nothing is built.

    `train` and `heldout` are those of the only source in the cache, or of the one that `mixture` belongs to.

    Raises:
      UserError: there is no such folder, or what is known of a source is damaged.
    """
    made = cls.__new__(cls)
    made._cache, made._note, made._jobs = Path(cache_dir), note, None
    if not made._cache.is_dir():
      raise UserError(
        f"there is no cache folder {str(cache_dir)!r}.",
        hint="name one with --cache_dir=FOLDER, or build one: mtx data build --gin_file=FILE",
      )
    known = [open_source(made._cache, name) for name in sources(made._cache)]
    fitting = known if len(known) == 1 else [names for names in known if mixture in names.values()]
    made._source, made._names, made._open = None, fitting[0] if fitting else {}, {}
    return made

  @property
  def names(self) -> tuple[str, ...]:
    """What a stage may name: train, heldout, and the parts of a mixture."""
    return tuple(self._names)

  @property
  def opened(self) -> tuple[CachedMixture, ...]:
    """What was asked for so far."""
    return tuple(self._open.values())

  def has(self, name: str) -> bool:
    """Whether `name` can be opened."""
    return self._names.get(name, name) in self._known()

  def check(self, name: str, *bindings: str) -> None:
    """Raises UserError unless `name` can be opened; says which of `bindings` was written, and where."""
    if self._names.get(name, name) in self._known():
      return
    known = {*(role for role in self._names if self.has(role)), *self._known()}
    if not bindings:
      raise UserError(f"no mixture {name!r} in the cache {self._cache}.", hint=did_you_mean(name, known))
    places = {b: ginfile.where(b) for b in bindings}
    written = next((b for b in bindings if places[b] != ginfile.DEFAULT), bindings[0])
    hint = did_you_mean(name, known)
    raise UserError(f"binding `{written}` at {places[written]}: no task or mixture {name!r}.", hint=hint)

  def __call__(self, name: str) -> CachedMixture:
    full = self._names.get(name, name)
    if full not in self._open:
      self._open[full] = self._load(full)
    return self._open[full]

  def _known(self) -> Iterable[str]:
    if self._source is None:
      return {p.stem for p in self._cache.glob("*.json")}
    from mtx.data.build import registered  # brings SeqIO

    return registered()

  def _load(self, name: str) -> CachedMixture:
    if self._source is None:
      return open_mixture(self._cache, name)
    from mtx.data.build import build_mixture  # brings SeqIO

    return build_mixture(self._source, name, self._cache, log=self._note, run=self._jobs)


def _called(source: Any) -> Any:
  """What a provider returns; where SeqIO is not installed, the name under which its tasks were cached elsewhere."""
  if not callable(source):
    return source
  stand_in = source.__name__ in (cached_mixture.__name__, cached_registered.__name__)
  return source() if find_spec("seqio") or stand_in else source.__name__


def cached_mixture(sources: Sequence[Any] = (), name: str = "mixture", **_: Any) -> str:
  """Stands in for `mtx.tasks.mixture` where SeqIO is not installed: names what it would build."""
  names = [_called(source) for source in sources]
  return names[0] if len(names) == 1 else name


def cached_registered(module: str = "", **_: Any) -> str:
  """Stands in for `mtx.tasks.registered`."""
  return module


def nothing_built(workers: int | None = None, bad_rows: int = 0) -> None:
  """Stands in for `mtx.data.build.build_mixture`: a config that binds it is valid on any machine."""
