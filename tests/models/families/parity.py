"""A random model of transformers and ours over the same weights: what every family's test checks, and how."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.models.build import build
from mtx.models.families.family import Family
from mtx.objectives.cross_entropy import cross_entropy
from mtx.training.parameters import Blueprint, blueprint

LENGTHS, WIDTH, TARGETS, STEPS = (11, 4, 9, 1), 11, 7, 32
TOLERANCE = 2e-4  # of the largest value
# Standard deviations of random parameters; all but the biases' times width^-1/2. Strong enough that attention is not
# uniform, weak enough that no token is repeated for ever: families differ in what does that.
SPREAD = {"matrix": 1.5, "table": 1.5, "position": 1.5, "bias": 0.3}

# (column of the table that conftest.py prints, number) of the test that runs.
MEASURED: list[tuple[str, float]] = []


class Pair:
  """Their model and ours with the same parameters, all of them random: a norm or bias that is left out shows.

  Args:
    family: ours.
    hf: a config of transformers.
    untied: gives an encoder-decoder a head of its own.
    spread: other values for some of SPREAD.
  """

  def __init__(self, family: Family, hf: Any, *, untied: bool = False, **spread: float):
    self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    self.family, self.hf = family, hf
    self.encdec = family.architectures == ("encdec",)
    auto = transformers.AutoModelForSeq2SeqLM if self.encdec else transformers.AutoModelForCausalLM
    self.torch.manual_seed(0)
    hf._attn_implementation = "eager"
    self.theirs = auto.from_config(hf).eval()
    if self.encdec and untied:  # transformers 5 shares T5's table even so, and only leaves out the scale
      self.theirs.lm_head.weight = self.torch.nn.Parameter(self.torch.zeros(hf.vocab_size, hf.d_model))
    self._randomise(SPREAD | spread)
    self.state = {family.spelled(name): value.detach().numpy() for name, value in self.theirs.state_dict().items()}
    self.config = family.config(hf.to_dict())
    family.settle(self.config, self.state)
    self.config.architecture = family.architectures[0]
    self.model = blueprint(lambda rngs: build(self.config, rngs=rngs))
    self.names = list(family.names(self.config))
    self.params = {p: jnp.asarray(a) for p, a in imported(self.names, self.model, self.state).items()}
    self._teacher = jax.jit(self._loss_and_gradients)
    self.greedy = jax.jit(self._greedy)

  def _randomise(self, spread: dict[str, float]) -> None:
    tables = {id(m.weight) for m in self.theirs.modules() if isinstance(m, self.torch.nn.Embedding)}
    with self.torch.no_grad():
      for name, p in [*self.theirs.named_parameters(), *self.theirs.named_buffers()]:
        if not p.is_floating_point() or name.endswith(("inv_freq", "embed_scale")):
          continue
        if p.ndim == 1 and name.endswith("weight"):
          p.normal_(1.0, 0.2)
        elif p.ndim == 1:
          p.normal_(0.0, spread["bias"])
        else:
          kind = "matrix" if id(p) not in tables else "position" if re.search("position|wpe", name) else "table"
          p.normal_(0.0, spread[kind] * p.shape[-1] ** -0.5)

  def _loss_and_gradients(self, params, batch):
    def loss(params):
      outputs = self.model.merge(params)(batch)
      found = cross_entropy(outputs, batch, 1)
      return found.sum / found.weight, outputs.logits

    return jax.value_and_grad(loss, has_aux=True)(params)

  def _greedy(self, params, prompts):
    logits, cache = self.model.merge(params).prefill(prompts, STEPS)

    def step(carry, _):
      logits, cache = carry
      token = logits.argmax(-1).astype(jnp.int32)
      return self.model.merge(params).decode_step(token, cache), token

    return jax.lax.scan(step, (logits, cache), None, STEPS)[1].T

  def tokens(self, rows: int, width: int, seed: int) -> np.ndarray:
    """Ids that are nobody's padding, start or end."""
    return np.random.default_rng(seed).integers(5, self.config.vocab_size, (rows, width)).astype(np.int32)

  def rows(self, side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """(tokens, 1 at real ones), rows of LENGTHS padded on one side: the same tokens on either."""
    drawn, lengths, place = self.tokens(len(LENGTHS), WIDTH, 1), np.array(LENGTHS)[:, None], np.arange(WIDTH)
    real = place < lengths if side == "right" else place >= WIDTH - lengths
    tokens = np.zeros_like(drawn)
    tokens[real] = drawn[place < lengths]
    return tokens, real.astype(np.int32)


def imported(names, model: Blueprint, state) -> dict[str, np.ndarray]:
  """Our parameters out of a dict of their tensors."""
  params = {}
  for name in names:
    shape = model.shapes[name.ours].shape
    if "{layer}" in name.theirs:
      layers = [name.read(state[name.theirs.format(layer=i)], shape[1:]) for i in range(shape[0])]
      params[name.ours] = np.stack(layers)
    else:
      params[name.ours] = np.array(name.read(state[name.theirs], shape))
  return params


def exported(names, model: Blueprint, params) -> dict[str, np.ndarray]:
  """The inverse of `imported`."""
  state: dict[str, np.ndarray] = {}
  for name in names:
    array = np.asarray(params[name.ours])
    stacked = "{layer}" in name.theirs
    for i in range(array.shape[0] if stacked else 1):
      one, place = (array[i], name.theirs.format(layer=i)) if stacked else (array, name.theirs)
      state.setdefault(place, np.full(name.stored_shape(one.shape), np.nan, one.dtype))
      name.write(state[place], one)
  return state


def check_names(pair: Pair) -> None:
  """Every parameter of ours is named once; every tensor of theirs is used, or known to hold nothing of its own."""
  assert sorted(name.ours for name in pair.names) == sorted(pair.model.shapes)
  used = set(exported(pair.names, pair.model, pair.params))
  left = [n for n in pair.state if n not in used and not any(re.fullmatch(r, n) for r in pair.family.ignored)]
  assert not left, left
  assert used <= pair.state.keys()


def check_round_trip(pair: Pair) -> None:
  """Export is the inverse of import, bit for bit, and the config that is written reads as the same config."""
  for name, array in exported(pair.names, pair.model, pair.params).items():
    np.testing.assert_array_equal(array, pair.state[name], err_msg=name)
  again = pair.family.config(pair.family.hf_config(pair.config))
  again.architecture = pair.config.architecture
  assert again.to_dict() == pair.config.to_dict()


def features(pair: Pair, side: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(a teacher-forced batch of ours, the arguments of theirs): rows of unequal length."""
  tensor = lambda a: pair.torch.tensor(np.asarray(a), dtype=pair.torch.long)
  tokens, real = pair.rows(side)
  positions = np.maximum(real.cumsum(1) - 1, 0).astype(np.int32)
  task = {"task_ids": np.zeros(len(tokens), np.int32)}
  if not pair.encdec:
    targets = np.roll(tokens, -1, axis=1)
    weights = real.copy()
    weights[np.arange(len(real)), [np.flatnonzero(r)[-1] for r in real]] = 0
    weights[:, -1] = 0
    ours = {
      "decoder_input_tokens": tokens,
      "decoder_target_tokens": targets,
      "decoder_loss_weights": weights.astype(np.float32),
      "decoder_segment_ids": real,
      "decoder_positions": positions,
      "decoder_task_ids": np.zeros_like(tokens),
    }
    return ours | task, dict(input_ids=tensor(tokens), attention_mask=tensor(real), position_ids=tensor(positions))
  targets = pair.tokens(len(tokens), TARGETS, 2)
  inside = (np.arange(TARGETS) < np.array([7, 3, 1, 5])[:, None]).astype(np.int32)
  shifted = np.concatenate([np.full((len(tokens), 1), pair.config.decoder_start), targets[:, :-1]], axis=1)
  ours = {
    "encoder_input_tokens": tokens,
    "encoder_segment_ids": real,
    "encoder_positions": np.arange(WIDTH, dtype=np.int32) * real,
    "encoder_task_ids": np.zeros_like(tokens),
    "decoder_input_tokens": np.where(inside, shifted, 0).astype(np.int32),
    "decoder_target_tokens": np.where(inside, targets, 0).astype(np.int32),
    "decoder_loss_weights": inside.astype(np.float32),
    "decoder_segment_ids": inside,
    "decoder_positions": np.arange(TARGETS, dtype=np.int32) * inside,
    "decoder_task_ids": np.zeros_like(targets),
  }
  theirs = dict(
    input_ids=tensor(tokens),
    attention_mask=tensor(real),
    decoder_input_ids=tensor(ours["decoder_input_tokens"]),
  )
  return ours | task, theirs


def close(ours, wanted: np.ndarray, tolerance: float, column: str, name: str = "") -> None:
  """Equal to `tolerance` of the largest number."""
  scale = np.abs(wanted).max()
  MEASURED.append((column, float(np.abs(ours - wanted).max() / scale)))
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def check_logits_and_gradients(pair: Pair, tensors: list[str], side: str = "right") -> None:
  """Logits, loss, and gradients of named parameters of ours.

  `position_ids` go only to models that take them; the others work positions out of the mask themselves.
  """
  batch, arguments = features(pair, side)
  if "position_ids" not in inspect.signature(pair.theirs.forward).parameters:
    arguments.pop("position_ids", None)
  logits = pair.theirs(**arguments).logits
  weights = pair.torch.tensor(batch["decoder_loss_weights"])
  labels = pair.torch.tensor(batch["decoder_target_tokens"], dtype=pair.torch.long)
  losses = pair.torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
  loss = (losses * weights).sum() / weights.sum()
  pair.theirs.zero_grad()
  loss.backward()
  (ours_loss, ours), gradients = pair._teacher(pair.params, batch)
  real = batch["decoder_segment_ids"] > 0
  assert not real.all()
  close(np.asarray(ours)[real], logits.detach().numpy()[real], TOLERANCE, "logits")
  np.testing.assert_allclose(ours_loss, loss.item(), rtol=1e-5)
  parameters = pair.theirs.named_parameters()
  theirs = {pair.family.spelled(n): p.grad.numpy() for n, p in parameters if p.grad is not None}
  chosen = [name for name in pair.names if name.ours in tensors]
  assert {name.ours for name in chosen} == set(tensors), f"no such parameters: {set(tensors)}"
  for path, wanted in imported(chosen, pair.model, theirs).items():
    assert np.abs(wanted).max() > 0, path
    close(gradients[path], wanted, 5e-4, "gradients", path)


def check_greedy(pair: Pair, side: str = "right") -> None:
  """32 tokens of `generate` for prompts of unequal length, which are padded on `side` for ours.

  Transformers' decoders generate after padding on the left only; its encoders take either side.
  """
  batch, arguments = features(pair, side)
  if not pair.encdec and side == "right":
    arguments = features(pair, "left")[1]
  wanted = pair.theirs.generate(
    input_ids=arguments["input_ids"],
    attention_mask=arguments["attention_mask"],
    max_new_tokens=STEPS,
    min_new_tokens=STEPS,
    do_sample=False,
    num_beams=1,
    pad_token_id=0,
    eos_token_id=None,
    forced_bos_token_id=None,
    forced_eos_token_id=None,
  )
  prefix = "encoder_" if pair.encdec else "decoder_"
  prompts = {k: v for k, v in batch.items() if k.startswith(prefix) or k == "task_ids"}
  ours = np.asarray(pair.greedy(pair.params, prompts))
  MEASURED.append(("greedy", (ours == wanted[:, -STEPS:].numpy()).mean()))
  np.testing.assert_array_equal(ours, wanted[:, -STEPS:].numpy())
  assert len(np.unique(ours)) > 5  # one token for ever would hide mistakes
