"""The programs of a training step, lowered for a slice that is not here.

Nothing is allocated and no checkpoint is read: arguments are shapes, and what a
text task asks of the host (grading, segmenting) is left out.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import topologies

from meta_rl import (
  models,
  setup_devices,
  setup_run,
  sharding,
  train_calls,
  update,
)
from meta_rl.aot.chips import Slice
from meta_rl.types import Params

PROGRAMS = ('generate', 'prove', 'update')


@dataclasses.dataclass(frozen=True)
class Programs:
  """The programs of a config on a slice.

  Attributes:
    lower: name -> a function that lowers it.
    params: shapes of the policy's parameters.
    state_bytes: of the training state on each device: what stays in memory
      while the other programs run.
    rows: traces of a step.
    length: tokens of a trace, its prompt included.
  """

  lower: dict[str, Callable]
  params: Params
  state_bytes: float
  rows: int
  length: int


def devices_of(slice_: Slice):
  """Returns the devices of a slice that is not here.

  Raises:
    ValueError: libtpu is not installed, or it knows no such slice.
  """
  # No chip is opened: another process that compiles, or trains, is not in the
  # way.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  try:
    topology = topologies.get_topology_desc(slice_.name, platform='tpu')
  except Exception as error:  # of whatever kind libtpu raises
    text = ' '.join(str(error).split())
    raise ValueError(
      f'topology={slice_.name}: the TPU compiler knows no such slice, or is '
      f"not installed (pip install 'meta-rl[tpu]'): {text[:200]}"
    ) from None
  return topology.devices


def abstract_config(
  config: ml_collections.ConfigDict, size: dict | None
) -> ml_collections.ConfigDict:
  """Returns the config with what would read a checkpoint or a host taken out.

  Args:
    config: an RL config.
    size: keys of `config.model`, in place of a checkpoint's; None: the config's
      own.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  if size is not None:
    with config.unlocked():
      config.model.update(size)
      config.model.path = ''
      config.init_from = 'random'
  if config.task.name == 'text':
    config.task.tokenizer = 'bytes'
    config.task.template = 'none'
    # One token each of the tokenizer of bytes.
    config.task.close = config.task.stop = '</think>'
    config.task.answer_prefix = ''
  budgets = np.linspace(
    0, config.rollout.thinking_budget, config.prover.max_episodes + 1
  )
  if config.prover.boundaries == 'text':
    config.prover.boundaries = 'budgets'
    config.prover.budgets = tuple(int(n) for n in budgets[1:])
  return config


def make(config: ml_collections.ConfigDict, slice_: Slice) -> Programs:
  """Returns the programs of a config, its mesh laid over a slice.

  Args:
    config: of `abstract_config`.
    slice_: of `chips.slice_of`.

  Raises:
    ValueError: a mesh or batch that does not fit the slice.
  """
  mesh = sharding.make_mesh(
    **config.parallel.mesh.to_dict(), devices=devices_of(slice_)
  )
  setup_devices.check(config, mesh)
  config.parallel.kind = 'jit'
  config.batching.micro_batches = setup_devices.batching_of(config, mesh)[
    'micro_batches'
  ]
  config.batching.rows_per_device = None
  task = dataclasses.replace(
    setup_run.make_task(config),
    # In place of a verifier on the host, whose time is not the device's.
    verify=lambda answers, mask, _: (
      (answers * mask).sum(-1).astype(jnp.float32)
    ),
    segment=None,
  )
  shape = setup_run.model_config(config)
  model = models.make_model(shape)
  optimizer = setup_run.make_optimizer(config)
  calls = train_calls.make_parallel(config, model, task, optimizer, mesh=mesh)
  state = jax.eval_shape(
    lambda params: update.init_state(
      params, optimizer, config.seed, setup_run.trainable(config)
    ),
    setup_run.abstract_params(config),
  )
  state = _place(state, sharding.state_shardings(state, mesh))
  batch = _batch(config, mesh)
  key = _like(state.key, sharding.replicated(mesh))
  rows = sharding.batch_sharding(mesh)
  everywhere = lambda tree: jax.tree.map(lambda x: _like(x, rows), tree)
  traces, cache = everywhere(
    jax.eval_shape(calls.generate, state.params, batch, key)
  )
  arguments = state.params, batch, traces, cache, key
  measured = everywhere(jax.eval_shape(calls.prove, *arguments))
  return Programs(
    lower={
      'generate': lambda: calls.generate.lower(state.params, batch, key),
      'prove': lambda: calls.prove.lower(*arguments),
      'update': lambda: calls.update.lower(state, traces, measured),
    },
    params=state.params,
    state_bytes=bytes_of(state),
    rows=traces.tokens.shape[0],
    length=traces.tokens.shape[1],
  )


def matmul_params(config: ml_collections.ConfigDict, params: Params) -> float:
  """Returns the parameters that a token is multiplied by: no looked-up ones."""
  total = sum(x.size for x in jax.tree.leaves(params))
  tied = setup_run.model_config(config).tie_embeddings
  return total - (0 if tied else params['embedding'].size)


def model_flops(config: ml_collections.ConfigDict, programs: Programs) -> float:
  """Returns the FLOPs of an update without any recomputation.

  6 N tokens for the products with weights, and causal attention: 12 L^2 D / 2
  a layer and trace of length L, D heads times their width.
  """
  shape = setup_run.model_config(config)
  tokens = programs.rows * programs.length
  weights = 6.0 * matmul_params(config, programs.params) * tokens
  width = shape.num_heads * shape.dim
  attention = 6.0 * programs.length * tokens * width * shape.num_layers
  return config.batching.epochs * (weights + attention)


def _batch(config, mesh):
  """Shapes of a batch of problems, as `TaskKit.record_arrays` has them."""
  prompts, task = config.rollout.num_prompts, config.task
  if task.name != 'text':
    source = setup_run.load_problems(config, 'train')
    record = setup_run.task_kit(config).record_arrays(source[0])
    shapes = {k: (np.shape(v), np.asarray(v).dtype) for k, v in record.items()}
  else:
    answers = task.max_answers, task.answer_length
    shapes = {
      'prompts': ((task.prompt_length,), np.int32),
      'prompt_mask': ((task.prompt_length,), bool),
      'answers': (answers, np.int32),
      'answer_mask': (answers, bool),
      'gold': ((512,), np.uint8),
    }
  rows = sharding.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((prompts, *shape), dtype, sharding=rows)
    for name, (shape, dtype) in shapes.items()
  }


def _like(x, place):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _place(tree, places):
  return jax.tree.map(_like, tree, places)


def bytes_of(tree) -> float:
  """Returns the bytes of a tree of placed shapes on each device."""
  total = 0.0
  for x in jax.tree.leaves(tree):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      continue
    shard = x.sharding.shard_shape(x.shape)
    total += np.prod(shard) * x.dtype.itemsize
  return total
