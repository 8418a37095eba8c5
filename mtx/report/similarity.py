"""Figures of which tasks are alike: by their routes, and by their gradients."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from mtx.report.figures import COLOURS, INK, LEGIBLE_TASKS, MUTED, PAPER, STYLE, short

MOST_NAMED = 200  # leaves of a dendrogram; more are drawn without names


def dendrogram(
  weights: Float[np.ndarray, "task split skill"], tasks: Sequence[str], categories: Mapping[str, str]
) -> Figure:
  """Tasks joined by how alike their routes are: average linkage of 1 - cosine, over all splits at once.

  Leaves have the colour of their category, the six largest of which have one.

  Args:
    weights: routing weights of at least two tasks.
    tasks: names of the rows.
    categories: task -> category; a task without one has no colour.
  """
  flat = np.asarray(weights, float).reshape(len(tasks), -1)
  distances = np.clip(pdist(flat, "cosine"), 0, None)  # equal routes: rounding may fall below 0
  tree = hierarchy.linkage(distances, "average", optimal_ordering=len(tasks) <= 1000)
  drawn = hierarchy.dendrogram(tree, no_plot=True)
  named = len(tasks) <= MOST_NAMED
  height = 0.19 * len(tasks) if named else 11.0
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.4, height + 0.9))
    axis = figure.subplots()
    # scipy sets leaf i at 10 i + 5.
    lines = [
      list(zip(d, (np.array(i) - 5) / 10, strict=True)) for i, d in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    axis.add_collection(LineCollection(lines, colors=MUTED, linewidths=1))
    colours = category_colours([categories.get(task, "") for task in tasks])
    far = max(float(tree[:, 2].max()), 1e-6)
    leaves = [colours[categories.get(tasks[leaf], "")] for leaf in drawn["leaves"]]
    labels = {colour: category for category, colour in colours.items() if colour != MUTED}
    if MUTED in leaves:
      labels[MUTED] = "others" if labels else "no category"
    for colour, label in labels.items():
      at = [y for y, found in enumerate(leaves) if found == colour]
      axis.scatter([0] * len(at), at, s=22 if named else 6, color=colour, label=label, zorder=3, clip_on=False)
    if named:
      names = [short(tasks[leaf]) for leaf in drawn["leaves"]]
      axis.set_yticks(range(len(tasks)), names, color=INK, fontsize=8)
      axis.tick_params(axis="y", pad=6)
    else:
      axis.set_yticks([])
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_xlim(0, far * 1.03)
    axis.xaxis.set_major_locator(MaxNLocator(2))
    axis.set_xlabel("1 - cosine of routes")
    axis.spines["left"].set_visible(False)
    if len(labels) > 1:
      columns = max(1, min(len(labels), 50 // (max(map(len, labels.values())) + 5)))
      figure.legend(loc="outside upper left", ncols=columns, handletextpad=0.1, columnspacing=1)
  return figure


def category_colours(of_tasks: Sequence[str]) -> dict[str, str]:
  """A colour for each of the largest categories, in order of appearance; one grey for all others."""
  counts = {category: of_tasks.count(category) for category in dict.fromkeys(of_tasks)}
  large = sorted(counts, key=lambda category: -counts[category])[: len(COLOURS)]
  palette = iter(COLOURS)
  return {category: next(palette) if category in large and category else MUTED for category in counts}


def alignment_map(
  cosine: Float[np.ndarray, "task task"], tasks: Sequence[str], categories: Mapping[str, str]
) -> Figure:
  """Cosines of tasks' gradients: blue where they pull together, red where they conflict. Alike tasks are neighbours.

  Args:
    cosine: symmetric; NaN where a pair was not measured.
  """
  order = alike(cosine, tasks, categories)
  shown = np.array(cosine, float)[np.ix_(order, order)]
  np.fill_diagonal(shown, np.nan)
  highest = float(np.nanmax(np.abs(shown), initial=1e-6, where=np.isfinite(shown)))
  named = len(tasks) <= LEGIBLE_TASKS
  side = max(0.19 * len(tasks), 1.6) if named else 7.0
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(side + 2.6, side + 1.0))
    axis = figure.subplots()
    mesh = axis.pcolormesh(shown, cmap="RdBu", vmin=-highest, vmax=highest, rasterized=not named)
    if named:
      axis.hlines(range(1, len(tasks)), 0, len(tasks), color=PAPER, linewidth=0.8)
      axis.vlines(range(1, len(tasks)), 0, len(tasks), color=PAPER, linewidth=0.8)
      names = [short(tasks[i]) for i in order]
      axis.set_yticks(np.arange(len(tasks)) + 0.5, names, color=INK, fontsize=8)
    else:
      axis.set_yticks([])
    axis.set_xticks([])
    axis.set_xlim(0, len(tasks))
    axis.set_ylim(len(tasks), 0)
    axis.set_aspect("equal")
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axis, location="bottom", aspect=40, pad=0.02, shrink=0.7)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, symmetric=True)
    bar.set_label("cosine of gradients")
  return figure


def alike(cosine: Float[np.ndarray, "task task"], tasks: Sequence[str], categories: Mapping[str, str]) -> list[int]:
  """Rows by category, in order of appearance, and in a category so that alike tasks are neighbours."""
  rank = {category: i for i, category in enumerate(dict.fromkeys(categories.get(task, "") for task in tasks))}
  order: list[int] = []
  for category in rank:
    members = [i for i, task in enumerate(tasks) if categories.get(task, "") == category]
    if len(members) > 2:
      far = 1 - np.nan_to_num(np.array(cosine, float)[np.ix_(members, members)])
      far = np.clip((far + far.T) / 2, 0, None)
      np.fill_diagonal(far, 0)
      leaves = hierarchy.leaves_list(hierarchy.linkage(squareform(far, checks=False), "average", optimal_ordering=True))
      members = [members[i] for i in leaves]
    order += members
  return order


def mean_alignment(
  cosine: Float[np.ndarray, "task task"], tasks: Sequence[str], categories: Mapping[str, str]
) -> tuple[float, float | None, float | None]:
  """Mean cosine of all pairs, of those in one category, of those across; None where there is no such pair."""
  upper = np.triu_indices(len(tasks), 1)
  values = np.array(cosine, float)[upper]
  of = np.array([categories.get(task, "") for task in tasks])
  same = of[upper[0]] == of[upper[1]]
  mean = lambda chosen: float(np.nanmean(chosen)) if np.isfinite(chosen).any() else None
  return mean(values) or 0.0, mean(values[same]), mean(values[~same])
