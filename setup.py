"""Installs mtx. An upper bound is the next release that may break; `constraints/` pins tested sets."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# TensorFlow is not named: SeqIO brings it, and mtx runs on caches and checkpoints without either.
REQUIRES = [
  "jax>=0.10,<0.13",
  "flax>=0.12.8,<0.13",
  "optax>=0.2.6,<0.3",
  "orbax-checkpoint>=0.11.30,<0.13",
  "tensorstore>=0.1.70,<0.2",
  "ml_dtypes>=0.5,<0.7",
  "grain>=0.2.15,<0.3",
  "array_record>=0.8,<0.9",
  "seqio>=0.0.19,<0.1",
  "tensorflow-datasets>=4.9.9,<5",
  "gin-config>=0.5,<0.6",
  "ml_collections>=1.0,<2",
  "sentencepiece>=0.2,<0.3",
  "tokenizers>=0.21,<0.24",
  "protobuf>=4.21",
  "rouge_score>=0.1.2,<0.2",
  "sacrebleu>=2.4,<3",
  "scikit-learn>=1.5,<2",
  "math-verify>=0.8,<0.10",
  "bm25s>=0.3,<0.4",
  "langcodes[data]>=3.5,<4",
  "regex>=2024.4",
  "pyyaml>=6,<7",
  "pyarrow>=17,<27",
  "numpy>=2.0,<3",
  "scipy>=1.13,<2",
  "msgpack>=1.0,<2",
  "etils[epath]>=1.9.1,<2",
  "jaxtyping>=0.3,<0.4",
  "tensorboardX>=2.6,<3",
  "rich>=13,<16",
  "jinja2>=3.1,<4",
  "matplotlib>=3.9,<4",
]

EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda12]"],
  # sentencepiece 0.2.2 and later need a protobuf that is newer than Beam accepts.
  "beam": ["apache-beam>=2.60,<3", "google-crc32c>=1.5", "sentencepiece<0.2.2"],
  "dev": [
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "nbclient>=0.10,<0.12",
    "ipykernel>=6.29,<8",
    "docstring_parser>=0.16,<0.19",
    "pandas>=2.2,<4",
    "safetensors>=0.5,<0.9",
    "ruff>=0.14,<0.18",
    "mypy>=1.13,<3",
    "setuptools>=68",
    # Compiles kernels for TPUs that are not there; the release that goes with jax is jax[tpu]'s.
    "libtpu; platform_system == 'Linux' and platform_machine == 'x86_64'",
  ],
  # What mtx's numbers and speed are compared with. Their tests skip, saying so, without them.
  "peers": ["torch==2.13.0", "transformers>=5,<6", "peft>=0.18,<1"],
}

# Wheels carry the configs too: `mtx train --gin_file=configs/run/quickstart.gin` works in any folder.
CONFIGS = [
  (
    f"share/mtx/{folder.relative_to(ROOT).as_posix()}",
    [p.relative_to(ROOT).as_posix() for p in sorted(files)],
  )
  for folder in sorted((ROOT / "configs").rglob("*"))
  if folder.is_dir() and (files := list(folder.glob("*.gin")))
]

setup(
  name="mtx",
  version="0.1.0",
  description="Multitask fine-tuning in JAX: one gin file, one model, every task.",
  license="Apache-2.0",
  python_requires=">=3.11,<3.13",
  packages=find_packages(include=["mtx", "mtx.*", "pallas_kernels", "pallas_kernels.*"]),
  package_data={
    "mtx.report": ["templates/*"],
    "pallas_kernels": ["h200.txtpb"],
    "pallas_kernels.tuning": ["table.json"],
  },
  data_files=CONFIGS,
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["mtx = mtx.run:main"]},
)
