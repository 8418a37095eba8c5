"""MHR and Poly equal `peft`'s Poly layer, LoRA its LoRA layer: outputs and every gradient, from the same weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from mtx.adapters.lora import LoRA
from mtx.adapters.poly import MHR
from mtx.models.context import Context

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

DIN, DOUT, TASKS, ROWS, LENGTH = 12, 20, 5, 6, 4
TOLERANCE = 1e-5
TASK_IDS = np.array([3, 0, 4, 4, 1, 3], np.int32)


class Layer(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.projection = torch.nn.Linear(DIN, DOUT, bias=False)

  def forward(self, x, **kwargs):
    return self.projection(x, **kwargs)


def wrapped(config):
  """`peft` around one projection, all its parameters drawn anew: B and routers start where nothing shows."""
  torch.manual_seed(0)
  layer = peft.get_peft_model(Layer(), config).base_model
  with torch.no_grad():
    for parameter in layer.parameters():
      parameter.normal_()
  return layer.eval()  # training mode samples the routing


def context(task_ids):
  ones = np.ones((ROWS, LENGTH), np.int32)
  return Context(task_ids, segment_ids=ones, positions=ones)


def ours(method, parameters: dict[str, np.ndarray], task_ids):
  """(output of the adapter, gradients of sum(output * direction)) as a function of parameters and input."""
  rngs = nnx.Rngs(0)
  graphdef, state = nnx.split(method(rngs))
  assert {p: v.shape for p, v in nnx.to_pure_dict(state).items()} == {p: v.shape for p, v in parameters.items()}
  rng = np.random.default_rng(1)
  x, direction = (rng.normal(size=(ROWS, LENGTH, n)).astype(np.float32) for n in (DIN, DOUT))

  def loss(parameters, x):
    y = nnx.merge(graphdef, parameters)(x, context(task_ids))
    return (y * direction).sum(), y

  grads, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(parameters, x)
  return x, direction, y, {**grads[0], "x": grads[1]}


def theirs(layer, named: dict, x, direction, **kwargs):
  """The same of `peft`, without the base projection's part; `named`: our names -> their parameters."""
  x = torch.tensor(x, requires_grad=True)
  base = next(p for n, p in layer.named_parameters() if "base_layer" in n)
  y = layer(x, **kwargs) - x @ base.detach().T
  (y * torch.tensor(direction)).sum().backward()
  return y.detach().numpy(), {**{n: p.grad.numpy() for n, p in named.items()}, "x": x.grad.numpy()}


def assert_close(one, other, name):
  assert np.abs(other).max() > 0, name
  np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max(), err_msg=name)


@pytest.mark.parametrize("form", ["row", "token"])
@pytest.mark.parametrize("splits, skills, rank", [(1, 3, 2), (4, 3, 2), (2, 8, 1)])
def test_mhr_equals_peft_poly(splits, skills, rank, form):
  """Poly (one split) and MHR, routed by row and by token: output, A, B, router and input gradients to 1e-5."""
  config = peft.PolyConfig(
    r=rank, n_tasks=TASKS, n_skills=skills, n_splits=splits, target_modules=["projection"], poly_type="poly"
  )
  layer = wrapped(config)
  find = lambda word: next(p for n, p in layer.named_parameters() if word in n)
  named = {"a": find("poly_lora_A"), "b": find("poly_lora_B"), "router": find("poly_router")}
  parameters = {n: p.detach().numpy() for n, p in named.items()}
  parameters["router"] = parameters["router"].reshape(TASKS, splits, skills)
  method = lambda rngs: MHR(
    DIN, DOUT, ("embed", "heads"), tasks=TASKS, rngs=rngs, skills=skills, splits=splits, rank=rank
  )
  task_ids = TASK_IDS if form == "row" else np.repeat(TASK_IDS[:, None], LENGTH, axis=1)
  x, direction, y, grads = ours(method, parameters, task_ids)
  y_peft, grads_peft = theirs(layer, named, x, direction, task_ids=torch.tensor(TASK_IDS, dtype=torch.long))
  assert_close(y, y_peft, "output")
  for name, gradient in grads.items():
    assert_close(gradient, grads_peft[name].reshape(gradient.shape), name)


@pytest.mark.parametrize("alpha", [None, 12.0])
def test_lora_equals_peft(alpha):
  """Output, A, B and input gradients to 1e-5, with the default scale and with alpha."""
  rank = 3
  layer = wrapped(peft.LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=["projection"], lora_dropout=0.0))
  find = lambda word: next(p for n, p in layer.named_parameters() if word in n)
  named = {"a": find("lora_A"), "b": find("lora_B")}
  parameters = {n: p.detach().numpy().T for n, p in named.items()}
  method = lambda rngs: LoRA(DIN, DOUT, ("embed", "heads"), tasks=TASKS, rngs=rngs, rank=rank, alpha=alpha)
  x, direction, y, grads = ours(method, parameters, TASK_IDS)
  y_peft, grads_peft = theirs(layer, named, x, direction)
  assert_close(y, y_peft, "output")
  for name, gradient in grads.items():
    wanted = grads_peft[name]
    assert_close(gradient, wanted if name == "x" else wanted.T, name)
