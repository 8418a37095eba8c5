"""LoRA, Poly and MHR in the format of peft, both ways: peft loads ours, we load peft's, logits are equal."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mtx.adapters.lora import LoRA
from mtx.adapters.poly import MHR
from mtx.adapters.site import inject, injections
from mtx.errors import UserError
from mtx.models.build import build
from mtx.pretrained.export import export
from mtx.pretrained.model import find_model, open_model, with_adapters
from mtx.pretrained.native import Card, write_native
from mtx.training.parameters import blueprint

peft = pytest.importorskip("peft", reason="peft is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOLERANCE = 2e-4  # of the largest logit
TASKS = ("add", "take", "turn")
CLASSES = {
  "t5": "T5ForConditionalGeneration",
  "llama": "LlamaForCausalLM",
  "gpt2": "GPT2LMHeadModel",
  "neox": "GPTNeoXForCausalLM",
  "phi3": "Phi3ForCausalLM",
}


def rows(encdec: bool, count: int = 3) -> dict[str, np.ndarray]:
  """One row a task; tokens are nobody's padding."""
  rng = np.random.default_rng(0)
  made = {"task_ids": np.arange(count, dtype=np.int32)}
  for side, length in (("encoder", 7), ("decoder", 5)) if encdec else (("decoder", 7),):
    made[f"{side}_input_tokens"] = rng.integers(5, 48, (count, length)).astype(np.int32)
    made[f"{side}_segment_ids"] = np.ones((count, length), np.int32)
    made[f"{side}_positions"] = np.tile(np.arange(length, dtype=np.int32), (count, 1))
  return made


def ours(opened, batch) -> np.ndarray:
  return np.asarray(jax.jit(lambda params, batch: opened.blueprint.merge(params)(batch).logits)(opened.params, batch))


def theirs(model, batch, **more) -> np.ndarray:
  tokens = {side: torch.tensor(batch[f"{side}_input_tokens"], dtype=torch.long) for side in ("encoder", "decoder")
            if f"{side}_input_tokens" in batch}  # fmt: skip
  encdec = "encoder" in tokens
  inputs = {"input_ids": tokens["encoder" if encdec else "decoder"]}
  inputs |= {"decoder_input_ids": tokens["decoder"]} if encdec else {}
  with torch.no_grad():
    return model.eval()(**inputs, **more).logits.numpy()


def base(folder, name):
  return getattr(transformers, CLASSES[name]).from_pretrained(folder)


def close(one, other) -> None:
  np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


@pytest.fixture(scope="module")
def hung(saved, mesh1, tmp_path_factory):
  """hung(name, pattern, method): a saved model with random adapters on it, in our own format."""

  def make(name, pattern, method, tasks=TASKS):
    found = find_model(saved(name))

    def module(rngs: nnx.Rngs):
      model = build(found.config, rngs=rngs)
      inject(model, len(tasks), rngs, pattern=pattern, method=method)
      return model

    model = blueprint(module)
    params = found.read(found.stored(model.shapes), model.shardings(mesh1))
    rng = np.random.default_rng(1)
    for path, shape in model.shapes.items():
      if "/adapter/" in path:
        params[path] = jnp.asarray(rng.normal(size=shape.shape) * 0.3, jnp.float32)
    card = {field: getattr(found, field) for field in Card.__dataclass_fields__}
    routed = any("task" in axes for axes in model.axes.values())
    card |= {"injections": injections(model.merge(model.shapes)), "tasks": tasks if routed else ()}
    return write_native(tmp_path_factory.mktemp(name) / "kept", Card(**card), params)

  return make


METHODS = {
  "lora": partial(LoRA, rank=3, alpha=7.0),
  "poly": partial(MHR, skills=4, splits=1, rank=2),
  "mhr": partial(MHR, skills=3, splits=2, rank=2),
}
SITES = {"t5": r"(encoder|decoder)/.*/(q|v|wo)", "llama": r"decoder/.*/(k|wi_1|o)"}


def sites(name: str, kind: str) -> str:
  """The head has 61 columns, which no number of splits divides."""
  return SITES[name] + ("|head/projection" if (name, kind) == ("llama", "lora") else "")


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", SITES)
def test_peft_loads_ours_and_we_load_peft_s(saved, mesh1, hung, tmp_path, name, kind):
  """Logits of three tasks; then the adapters come back bit for bit, on the same sites, with the tasks' names."""
  opened = open_model(hung(name, sites(name, kind), METHODS[kind]), mesh1)
  batch = rows(name == "t5")
  expected = ours(opened, batch)
  given = export(opened, tmp_path / "given", adapters="peft")
  assert {file.name for file in given.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
  model = peft.PeftModel.from_pretrained(base(saved(name), name), given)
  more = {} if kind == "lora" else {"task_ids": torch.arange(len(TASKS))}
  plain = theirs(base(saved(name), name), batch)
  found = theirs(model, batch, **more)
  assert np.abs(found - plain).max() > 0.01 * np.abs(plain).max()
  close(found, expected)

  again = open_model(given, mesh1)  # its base lies where adapter_config.json says
  assert again.tasks == (() if kind == "lora" else TASKS)
  assert again.params.keys() == opened.params.keys()
  for path, value in opened.params.items():
    np.testing.assert_array_equal(np.asarray(again.params[path]), np.asarray(value), err_msg=path)
  np.testing.assert_array_equal(ours(again, batch), expected)


@pytest.mark.parametrize("kind", ["lora", "mhr"])
@pytest.mark.parametrize("name", SITES)
def test_merged_adapters(saved, mesh1, hung, tmp_path, name, kind):
  """LoRA folds into the weights; of MHR the mixture of one task does."""
  opened = open_model(hung(name, sites(name, kind), METHODS[kind]), mesh1)
  batch = rows(name == "t5")
  expected = ours(opened, batch)
  if kind == "mhr":
    with pytest.raises(UserError, match="are routed"):
      export(opened, tmp_path / "all")
    with pytest.raises(UserError, match="--task 'tak'") as error:
      export(opened, tmp_path / "all", task="tak")
    assert "`take`" in error.value.hint and not (tmp_path / "all").exists()
  given = export(opened, tmp_path / "given", task="take" if kind == "mhr" else None)
  found = theirs(base(given, name), batch)
  close(found[1], expected[1])
  if kind == "mhr":
    assert np.abs(found[0] - expected[0]).max() > 0.01 * np.abs(expected).max()
  bare = export(opened, tmp_path / "bare", adapters="none")
  weights, written = (load_file(folder / "model.safetensors") for folder in (saved(name), bare))
  assert weights.keys() == written.keys()
  for tensor, value in weights.items():
    np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


def test_an_adapter_that_is_not_linear_is_not_folded(saved, mesh1, tmp_path):
  from mtx.pretrained.fold import folded

  class Bent(LoRA):
    def __call__(self, x, ctx):
      return jnp.tanh(super().__call__(x, ctx))

  config = find_model(saved("t5")).config

  def module(rngs: nnx.Rngs):
    model = build(config, rngs=rngs)
    inject(model, 1, rngs, pattern="encoder/.*/q", method=Bent)
    return model

  model = blueprint(module)
  params = {p: jnp.full(s.shape, 0.3) for p, s in model.shapes.items()}
  with pytest.raises(UserError, match="encoder/layers/self_attention/q is not linear"):
    folded(model, params, ())


# Modules that hold several of our projections, with one that does not.
FUSED = {
  "gpt2": ["c_attn", "c_fc"],
  "neox": ["query_key_value", "dense"],
  "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
}


@pytest.mark.parametrize("name", FUSED)
def test_lora_of_ours_in_fused_modules(saved, mesh1, hung, tmp_path, name):
  """Two of three projections of a module, each with an A of its own, and the whole of another."""
  opened = open_model(hung(name, "decoder/.*/(q|v|o)", METHODS["lora"]), mesh1)
  batch = rows(False)
  given = export(opened, tmp_path / "given", adapters="peft")
  model = peft.PeftModel.from_pretrained(base(saved(name), name), given)
  expected = ours(opened, batch)
  assert np.abs(theirs(base(saved(name), name), batch) - expected).max() > 0.01 * np.abs(expected).max()
  close(theirs(model, batch), expected)
  close(ours(open_model(given, mesh1), batch), expected)


@pytest.mark.parametrize("name", FUSED)
def test_lora_of_theirs_in_fused_modules(saved, mesh1, tmp_path, name):
  """Every projection of a module gets its part; what is written again is what was read, bit for bit."""
  flat = {"fan_in_fan_out": True} if name == "gpt2" else {}
  model = of_peft(saved, tmp_path / "theirs", name=name, target_modules=FUSED[name], r=3, lora_alpha=7, **flat)
  opened = open_model_with(saved(name), tmp_path / "theirs", mesh1)
  batch = rows(False)
  close(ours(opened, batch), theirs(model, batch))
  again = export(opened, tmp_path / "again", adapters="peft")
  before, after = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("theirs", "again"))
  assert before.keys() == after.keys()
  for tensor, value in before.items():
    np.testing.assert_array_equal(after[tensor], value, err_msg=tensor)
  assert json.loads((again / "adapter_config.json").read_text())["lora_alpha"] == 7


def open_model_with(folder, adapters, mesh):
  """A model's folder with the adapters of a folder of peft."""
  config = adapters / "adapter_config.json"
  config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(folder)}))
  return open_model(adapters, mesh)


def test_poly_in_a_fused_module_is_refused(mesh1, hung, tmp_path):
  """Peft routes a module as a whole, and its splits cut through what we route apart."""
  opened = open_model(hung("gpt2", ".*/self_attention/v", METHODS["mhr"]), mesh1)
  with pytest.raises(UserError, match=r"self_attention/v is a part of `transformer\.h\.\{layer\}\.attn\.c_attn`"):
    export(opened, tmp_path / "given", adapters="peft")
  assert not list(tmp_path.iterdir())


def test_conv1d(saved, mesh1, hung, tmp_path):
  opened = open_model(hung("gpt2", ".*/mlp/wo", METHODS["lora"]), mesh1)
  given = export(opened, tmp_path / "given", adapters="peft")
  batch = rows(False)
  model = peft.PeftModel.from_pretrained(base(saved("gpt2"), "gpt2"), given)
  close(theirs(model, batch), ours(opened, batch))
  routed = open_model(hung("gpt2", ".*/mlp/wo", METHODS["mhr"]), mesh1)
  with pytest.raises(UserError, match=r"is not a torch\.nn\.Linear"):
    export(routed, tmp_path / "routed", adapters="peft")


def of_peft(saved, folder, name="t5", **settings):
  """A folder that peft wrote, all its parameters random."""
  torch.manual_seed(3)
  model = peft.get_peft_model(base(saved(name), name), peft.LoraConfig(**settings))
  with torch.no_grad():
    for parameter_name, parameter in model.named_parameters():
      if "lora_" in parameter_name:
        parameter.normal_(0, 0.3)
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize(
  "settings",
  [
    {"target_modules": ["q", "wo"], "r": 4, "lora_alpha": 10},
    {"target_modules": ["q"], "r": 4, "lora_alpha": 10, "use_rslora": True},
    {"target_modules": ["v"], "r": 2, "layers_to_transform": [1], "layers_pattern": "block"},
  ],
  ids=["two modules", "rslora", "one layer of two"],
)
def test_what_peft_wrote(saved, mesh1, tmp_path, settings):
  model = of_peft(saved, tmp_path / "theirs", **settings)
  batch = rows(True)
  found = with_adapters(find_model(saved("t5")), tmp_path / "theirs")
  built = found.blueprint()
  params = found.read(found.stored(built.shapes), built.shardings(mesh1))
  logits = jax.jit(lambda params, batch: built.merge(params)(batch).logits)(params, batch)
  close(np.asarray(logits), theirs(model, batch))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_dora": True}, "'use_dora' is True"),
    ({"rank_pattern": {"q": 2}}, "'rank_pattern' is"),
    ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not known"),
    ({"base_model_name_or_path": "someone/model"}, "'someone/model', which is not on this machine"),
  ],
)
def test_settings_that_are_not_ours(saved, tmp_path, change, message):
  of_peft(saved, tmp_path / "theirs", target_modules=["q"], r=2)
  file = tmp_path / "theirs" / "adapter_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(saved("t5")), **change}))
  with pytest.raises(UserError, match=message):
    find_model(tmp_path / "theirs")


def test_a_module_that_is_no_site(saved, tmp_path):
  of_peft(saved, tmp_path / "theirs", name="gpt2", target_modules=["wpe"], r=2)
  with pytest.raises(UserError, match=r"wpe"):
    with_adapters(find_model(saved("gpt2")), tmp_path / "theirs")


def test_adapters_do_not_hang_on_adapters(hung, saved, tmp_path):
  of_peft(saved, tmp_path / "theirs", target_modules=["q"], r=2)
  with pytest.raises(UserError, match="has adapters already"):
    with_adapters(find_model(hung("t5", ".*/v", METHODS["lora"])), tmp_path / "theirs")
