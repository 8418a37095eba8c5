"""The encoder-decoder equals `transformers`' T5 1.1 from the same weights: logits, gradients, greedy tokens."""

import jax
import numpy as np
import pytest

from mtx.data.convert import padded, prompts
from mtx.decode.greedy import make_greedy
from mtx.models.build import build
from mtx.objectives.cross_entropy import cross_entropy
from mtx.training.parameters import blueprint

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LAYERS, INPUTS, TARGETS, STEPS = 2, 9, 6, 16


def name_table(tied: bool) -> dict[str, list[str]]:
  """Path -> names in transformers, one a layer for stacked parameters."""
  block = lambda side, name: [f"{side}.block.{i}.layer.{name}.weight" for i in range(LAYERS)]
  table = {"head/embedding/table": ["shared.weight"]}
  if not tied:
    table["head/projection/kernel"] = ["lm_head.weight"]
  for side in ("encoder", "decoder"):
    cross = side == "decoder"
    mlp = 2 if cross else 1
    for q in "qkvo":
      table[f"{side}/layers/self_attention/{q}/kernel"] = block(side, f"0.SelfAttention.{q}")
      if cross:
        table[f"{side}/layers/cross_attention/{q}/kernel"] = block(side, f"1.EncDecAttention.{q}")
    for w in ("wi_0", "wi_1", "wo"):
      table[f"{side}/layers/mlp/{w}/kernel"] = block(side, f"{mlp}.DenseReluDense.{w}")
    table[f"{side}/layers/self_norm/scale"] = block(side, "0.layer_norm")
    table[f"{side}/layers/mlp_norm/scale"] = block(side, f"{mlp}.layer_norm")
    if cross:
      table[f"{side}/layers/cross_norm/scale"] = block(side, "1.layer_norm")
    table[f"{side}/norm/scale"] = [f"{side}.final_layer_norm.weight"]
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table[f"{side}/relative_bias/table"] = [bias]
  return table


def converted(path: str, arrays: list) -> np.ndarray:
  """Our layout of tensors of theirs: kernels are [in, out], layers are stacked."""
  arrays = [np.asarray(a.detach() if hasattr(a, "detach") else a) for a in arrays]
  arrays = [a.T if path.endswith("kernel") else a for a in arrays]
  return np.stack(arrays) if "/layers/" in path else arrays[0]


class Pair:
  """Their model and ours with the same weights, and one batch of unequal lengths for both."""

  def __init__(self, tied: bool, tiny, examples):
    c = tiny(tied_head=tied, encoder_layers=LAYERS, decoder_layers=LAYERS)
    torch.manual_seed(0)
    sizes = dict(d_model=c.d_model, d_kv=c.d_kv, num_heads=c.heads, d_ff=c.d_ff, vocab_size=c.vocab_size)
    self.theirs = transformers.T5ForConditionalGeneration(
      transformers.T5Config(
        **sizes,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        relative_attention_num_buckets=c.relative_buckets,
        relative_attention_max_distance=c.relative_max_distance,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
        eos_token_id=None,
      )
    ).eval()
    if not tied:  # transformers 5 shares the table even so, and only leaves out the scale
      self.theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(c.vocab_size, c.d_model))
    with torch.no_grad():
      # Norms and biases start at values that hide mistakes; a strong embedding repeats one token for ever.
      for name, p in self.theirs.named_parameters():
        p.normal_(1.0, 0.2) if "norm" in name else p.normal_(0.0, 0.1 if "shared" in name else 0.5)
    self.model = blueprint(lambda rngs: build(c, rngs=rngs))
    self.table = name_table(tied)
    state = self.theirs.state_dict()
    self.params = {p: jax.numpy.asarray(converted(p, [state[n] for n in names])) for p, names in self.table.items()}
    self.examples = examples(5, inputs=INPUTS, targets=TARGETS, seed=3)
    self.batch = padded(self.examples, "encdec", INPUTS, TARGETS, [0] * 5, rows=5)
    tensor = lambda name: torch.tensor(self.batch[name], dtype=torch.long)
    self.sources = dict(
      input_ids=tensor("encoder_input_tokens"), attention_mask=(tensor("encoder_segment_ids") > 0).long()
    )
    self.labels = torch.where(tensor("decoder_segment_ids") > 0, tensor("decoder_target_tokens"), -100)

    def loss(params, batch):
      outputs = self.model.merge(params)(batch)
      found = cross_entropy(outputs, batch, 1)
      return found.sum / found.weight, outputs.logits

    self.gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module", params=["tied", "untied"])
def pair(request, tiny, examples):
  return Pair(request.param == "tied", tiny, examples)


def test_name_table_is_complete(pair):
  """Every parameter of either model has its counterpart, in shape too."""
  assert pair.table.keys() == pair.model.shapes.keys()
  for path, array in pair.params.items():
    assert array.shape == pair.model.shapes[path].shape, path
  named = {n for names in pair.table.values() for n in names}
  assert named == {n for n, _ in pair.theirs.named_parameters()}


def test_logits_and_gradients(pair):
  """Logits to 2e-4 of their scale, loss and gradients of named parameters to 5e-4, rows of unequal length."""
  outputs = pair.theirs(**pair.sources, labels=pair.labels)
  outputs.loss.backward()
  (loss, logits), grads = pair.gradients(pair.params, pair.batch)
  real = pair.batch["decoder_segment_ids"] > 0
  assert not real.all() and not (pair.batch["encoder_segment_ids"] > 0).all()
  theirs = outputs.logits.detach().numpy()[real]
  np.testing.assert_allclose(np.asarray(logits)[real], theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())
  np.testing.assert_allclose(loss, outputs.loss.item(), rtol=1e-5)
  parameters = dict(pair.theirs.named_parameters())
  for path in (
    "head/embedding/table",
    "encoder/layers/self_attention/q/kernel",
    "encoder/relative_bias/table",
    "decoder/relative_bias/table",
    "decoder/layers/cross_attention/k/kernel",
    "decoder/layers/mlp/wi_0/kernel",
    "decoder/layers/cross_norm/scale",
  ):
    wanted = converted(path, [parameters[n].grad for n in pair.table[path]])
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(grads[path], wanted, rtol=0, atol=5e-4 * np.abs(wanted).max(), err_msg=path)


def test_greedy_tokens(pair, mesh1):
  """16 steps, no EOS: their `generate` and our cache choose the same tokens for rows of unequal length."""
  with torch.no_grad():
    theirs = pair.theirs.generate(**pair.sources, max_new_tokens=STEPS, do_sample=False, num_beams=1)
  greedy = make_greedy(pair.model, mesh1, eos_id=-1)
  ours = np.asarray(greedy(pair.params, prompts(pair.examples, "encdec", INPUTS, STEPS, [0] * 5), STEPS))
  np.testing.assert_array_equal(ours, theirs[:, 1:].numpy())
  assert len(np.unique(ours)) > 8
