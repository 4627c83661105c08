"""Packaging of meta_rl; the tools' settings are in pyproject.toml.

The wheel carries `configs/` as `meta_rl.configs`, so that
`--config=mrt_countdown` works without a checkout.
"""

import pathlib

import setuptools

README = pathlib.Path(__file__).with_name('README.md')

# The lower bounds are what the tests ran on, loosened where the part that is
# used has not moved for long. jax is capped at the newest minor version tested:
# sharding and pmap semantics change between its minor versions. The same two
# bounds are checked at start-up (meta_rl/env.py).
CORE = [
  'jax>=0.10,<0.12',
  'flax>=0.12.7',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12',
  'chex>=0.1.92',
  'tensorflow-datasets>=4.9.10',
  'array_record>=0.8.3',
  'grain>=0.2.18',
  'ml-collections>=1.1',
  'absl-py>=2.3',
  'etils[epath]>=1.12',
  'numpy>=2.1',
  'tokenizers>=0.22',
  'safetensors>=0.6',
  'matplotlib>=3.10',
  'tqdm>=4.67',
  'tensorboardX>=2.6.2',
]

EXTRAS = {
  'tpu': ['jax[tpu]>=0.10,<0.12', 'gcsfs>=2025.3'],
  'gcs': ['gcsfs>=2025.3'],
  'cuda': ['jax[cuda12]>=0.10,<0.12'],
  'serve': ['starlette>=0.40', 'uvicorn>=0.30'],
  'docs': ['sphinx>=8', 'myst-parser>=4', 'furo>=2024.8.6'],
  'wandb': ['wandb>=0.19'],
  'llm': [
    'gguf>=0.17',
    'math-verify>=0.9',
    'jinja2>=3.1.6',  # older ones let templates out of their sandbox
    'pyarrow>=17',
  ],
  # Some of reasoning-gym's dependencies come as source and need a C compiler,
  # which is why it is in no set that the two commands of the README install.
  'tasks': ['reasoning-gym>=0.1.25'],
  # ruff's formatting changes between minor versions, so it is pinned to one;
  # setuptools lets the packaging test build a wheel without a network.
  'test': [
    'pytest>=8.4',
    'pytest-timeout>=2.3',
    'gguf>=0.17',
    'pytest-xdist>=3.6',
    'hypothesis>=6.130',
    'math-verify>=0.9',
    'jinja2>=3.1.6',
    'ruff>=0.17,<0.18',
    'build>=1.2',
    'setuptools>=77',
    'starlette>=0.40',
    'uvicorn>=0.30',
  ],
  'colab': ['nbclient>=0.10', 'nbformat>=5.10', 'ipykernel>=6.29'],
  'bench': ['psutil>=6'],
}

setuptools.setup(
  name='meta-rl',
  version='0.1.0',
  description=(
    'Meta reinforcement fine-tuning in JAX: language models that make every '
    'token of test-time compute count'
  ),
  long_description=README.read_text('utf-8') if README.exists() else '',
  long_description_content_type='text/markdown',
  author='The meta_rl authors',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  packages=[
    'meta_rl.configs',
    *setuptools.find_packages(include=['meta_rl', 'meta_rl.*']),
  ],
  package_dir={'meta_rl.configs': 'configs'},
  package_data={'meta_rl': ['assets/**']},
  install_requires=CORE,
  extras_require=EXTRAS,
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  keywords='reinforcement-learning language-models jax tpu test-time-compute',
)
