"""What T5's bias adds to the schedules of the TPU kernels."""

from collections.abc import Iterator

from pallas_kernels.bench import attention
from pallas_kernels.bench.attention import KERNELS
from pallas_kernels.static import Schedule, schedules

HEADER = ("kernel, length 4096", "chip", "bundles a block", "without bias", "ratio", "goal", "MXU cycles a block")
NAMES = ("mtx_attention_forward", "mtx_attention_backward")
GOAL = 1.05


def rows() -> Iterator[tuple[str, ...]]:
  """A line a kernel, on v5e."""
  case = attention.dearer(4096, "bias", backward=True)
  ours = KERNELS["tpu"]
  with_bias, without = (_of(case.name, contestant) for contestant in (ours, f"{ours} without"))
  for name in NAMES:
    ratio = with_bias[name].block / without[name].block
    verdict = f"<= {GOAL}: {'met' if ratio <= GOAL else '**missed**'}"
    blocks = (str(each[name].block) for each in (with_bias, without))
    yield (name, "v5e", *blocks, f"{ratio:.3f}", verdict, str(with_bias[name].block_cycles.get("MXU", "")))


def _of(case: str, contestant: str) -> dict[str, Schedule]:
  return schedules("v5e", list(NAMES), "pallas_kernels.bench.cases:program", case=case, contestant=contestant)
