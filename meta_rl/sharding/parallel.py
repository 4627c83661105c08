"""The calls of a training step on one device, on a mesh, or under pmap.

    kind    generate, prove, score, value    update
    none    one device                       one device
    jit     shard_map, weights gathered      jit, NamedSharding on the mesh;
                                             shard_map where data alone is split
    pmap    jax.pmap over prompts            jax.pmap, gradients psummed

All kinds take and give the same values: batches and traces are global arrays
[P,...] and [B,...] with prompts in the order of the batch, and the state is one
plain tree. Only the KV cache is opaque: every leaf has a leading device axis
[D,...], since each device stops decoding alone and so has a write position
(`index`, `used`) of its own.

Axes: P prompts, G group, B = P * G traces, D data shards (data x fsdp), M
mini-batches.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from meta_rl.sharding.mesh import (
  batch_sharding,
  data_shards,
  make_mesh,
  param_shardings,
  replicated,
)
from meta_rl.sharding.processes import gather_to_host, global_batch
from meta_rl.sharding.spread import (
  check_batch,
  deal,
  first_row,
  place_copy,
  put_state,
  row_offset,
  rows_call,
  sharded_update,
)

KINDS = ('none', 'jit', 'pmap')
PMAP_AXIS = 'data'


@dataclasses.dataclass(frozen=True)
class Parallel:
  """The jitted calls of a training step, and how values get to and from them.

  Attributes:
    kind: 'none', 'jit' or 'pmap'.
    mesh: None for 'none'.
    generate: `(params, batch, key) -> (traces, cache)`.
    prove: `(params, batch, traces, cache, key) -> measured`.
    score: `(params, traces) -> log_probs`; None where none was given.
    value: `(params, traces) -> critic`; None where none was given.
    update: `(state, traces, measured, reference=None) -> (state, metrics)`; the
      state that is given is donated.
    put_params: puts parameters where the calls want them, in memory of their
      own.
    put_state: the same for a `TrainState`.
    put_batch: the same for a batch: all P prompts, or those of this process.
    get: fetches any of the values above but the cache, whole, as numpy arrays.
    traces: how often each call was traced: once a shape.
  """

  kind: str
  mesh: Mesh | None
  generate: Callable
  prove: Callable
  score: Callable | None
  value: Callable | None
  update: Callable
  put_params: Callable
  put_state: Callable
  put_batch: Callable
  get: Callable
  traces: dict[str, int]


def parallelize(
  kind: str,
  *,
  generate: Callable,
  prove: Callable,
  make_update: Callable,
  rows_per_prompt: int,
  score: Callable | None = None,
  value: Callable | None = None,
  mini_batches: int = 1,
  mesh: Mesh | None = None,
) -> Parallel:
  """Returns the calls of a training step, jitted, for one kind of parallelism.

  The samples of a trace depend on its global index alone, and sums over devices
  are divided once, so that all kinds give the same traces, J, gradients and
  parameters, up to the order of float additions. Mini-batch m is the m-th run
  of P / M prompts of the batch in every kind: under 'pmap', update first hands
  each device its share of every mini-batch.

  Args:
    kind: 'none', 'jit' or 'pmap'.
    generate: `(params, batch, key, row_offset) -> (traces, cache)`.
    prove: `(params, batch, traces, cache, key, row_offset) -> measured`.
    make_update: `(axis_name, spread) -> update(state, traces, measured,
      reference)`. `axis_name` (None but under 'pmap') is for `update.update`
      and for an advantage that is fitted over all rows. `spread(loss_fn)` is
      the loss to train on: under 'jit' it spreads every micro-batch over all
      devices, which its slice of the batch alone would not.
    rows_per_prompt: G.
    score: `(params, traces) -> log_probs`.
    value: `(params, traces) -> critic`, a pytree with one row a trace.
    mini_batches: M, those of `update.update`.
    mesh: of `make_mesh`; default all devices along 'data'. None for 'none'.
  """
  if kind not in KINDS:
    raise ValueError(f'parallel kind {kind!r} is unknown; allowed: {KINDS}.')
  _check_processes(kind)
  if kind == 'none':
    if mesh is not None:
      raise ValueError("parallel kind 'none' takes no mesh: use 'jit' for one.")
    builder = _none
  else:
    mesh = make_mesh() if mesh is None else mesh
    builder = _jit if kind == 'jit' else _pmap
  traced, counted = _counter()
  calls = {
    'generate': counted('generate', generate),
    'prove': counted('prove', prove),
    'score': None if score is None else counted('score', score),
    'value': None if value is None else counted('value', value),
  }
  count_update = lambda *bound: counted('update', make_update(*bound))
  built = builder(
    mesh,
    make_update=count_update,
    rows_per_prompt=rows_per_prompt,
    mini_batches=mini_batches,
    **calls,
  )
  return Parallel(kind=kind, mesh=mesh, traces=traced, **built)


def _check_processes(kind):
  if kind != 'jit' and jax.process_count() > 1:
    raise ValueError(
      f'parallel kind {kind!r} runs in one process and there are '
      f"{jax.process_count()}: use 'jit'."
    )


def _counter():
  """Returns a dict of counts, and `counted(name, fn)` that counts in it."""
  counts = {}

  def counted(name, fn):
    counts[name] = 0

    def traced(*args):
      counts[name] += 1  # runs when jax traces, not when it runs
      return fn(*args)

    return traced

  return counts, counted


def _none(_, *, generate, prove, score, value, make_update, **__):
  """Everything on the default device; values stay where they are."""
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return {
    'generate': jax.jit(generate),
    'prove': jax.jit(prove),
    'score': None if score is None else jax.jit(score),
    'value': None if value is None else jax.jit(value),
    'update': jax.jit(
      make_update(None, lambda loss_fn: loss_fn), donate_argnums=0
    ),
    'put_params': copy,
    'put_state': copy,
    'put_batch': lambda batch: jax.tree.map(jnp.asarray, batch),
    'get': gather_to_host,
  }


def _jit(
  mesh,
  *,
  generate,
  prove,
  score,
  value,
  make_update,
  rows_per_prompt,
  mini_batches,
):
  """Decoding under shard_map, the update as one sharded program.

  A loop that ends on its data, under plain sharded `jit`, runs on all devices
  until the slowest row is done; under shard_map it ends on each device alone.
  The weights are gathered once a call for that, not once a token.
  """

  def own_generate(params, batch, key):
    offset = first_row(mesh, batch, rows_per_prompt)
    return generate(params, batch, key, offset)

  def own_prove(params, batch, traces, cache, key):
    offset = first_row(mesh, batch, rows_per_prompt)
    return prove(params, batch, traces, cache, key, offset)

  def own_rows(fn, kinds, **options):
    return (
      None if fn is None else jax.jit(rows_call(mesh, fn, kinds, **options))
    )

  update = sharded_update(mesh, make_update, mini_batches=mini_batches)

  def put_batch(batch):
    check_batch(mesh, mini_batches, batch)
    return global_batch(mesh, batch)

  return {
    'generate': own_rows(own_generate, 'wrw', gives_cache=True),
    'prove': own_rows(own_prove, 'wrrcw'),
    'score': own_rows(score, 'wr'),
    'value': own_rows(value, 'wr'),
    'update': jax.jit(update, donate_argnums=0),
    'put_params': lambda params: place_copy(
      params, param_shardings(params, mesh)
    ),
    'put_state': lambda state: put_state(mesh, state),
    'put_batch': put_batch,
    'get': gather_to_host,
  }


def _pmap(
  mesh,
  *,
  generate,
  prove,
  score,
  value,
  make_update,
  rows_per_prompt,
  mini_batches,
):
  """Every call is a `jax.pmap`: weights on every device, prompts split.

  The state goes in and out unmapped, so that it has no device axis: one
  checkpoint fits all kinds.
  """
  if data_shards(mesh) != mesh.size or mesh.shape['data'] != mesh.size:
    raise ValueError(
      f"parallel kind 'pmap' splits data alone and the mesh is "
      f"{dict(mesh.shape)}: give data=-1 with the others 1, or use 'jit'."
    )
  count = mesh.size

  def pmap(fn, in_axes, out_axes=0, **options):
    return jax.pmap(
      fn,
      axis_name=PMAP_AXIS,
      in_axes=in_axes,
      out_axes=out_axes,
      devices=list(mesh.devices.flat),
      **options,
    )

  rows = batch_sharding(mesh)

  def cut(parts):
    own = lambda tree: jax.tree.map(lambda x: deal(x, parts, count), tree)
    return jax.jit(own, out_shardings=rows)

  split, split_each = cut(1), cut(mini_batches)
  merge = jax.jit(
    lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree),
    out_shardings=rows,
  )
  offset = lambda batch: row_offset(batch, rows_per_prompt, PMAP_AXIS)
  mapped_generate = pmap(
    lambda params, batch, key: generate(params, batch, key, offset(batch)),
    (None, 0, None),
  )
  mapped_prove = pmap(
    lambda params, batch, traces, cache, key: prove(
      params, batch, traces, cache, key, offset(batch)
    ),
    (None, 0, 0, 0, None),
  )
  mapped_update = pmap(
    make_update(PMAP_AXIS, lambda loss_fn: loss_fn),
    (None, 0, 0, 0),
    None,
    donate_argnums=0,
  )

  def run_generate(params, batch, key):
    traces, cache = mapped_generate(params, split(batch), key)
    return merge(traces), cache

  def run_prove(params, batch, traces, cache, key):
    batch, traces = split((batch, traces))
    return merge(mapped_prove(params, batch, traces, cache, key))

  def of_traces(fn):
    if fn is None:
      return None
    mapped = pmap(fn, (None, 0))
    return lambda params, traces: merge(mapped(params, split(traces)))

  def run_update(state, traces, measured, reference=None):
    given = split_each((traces, measured, reference))
    state, sums = mapped_update(state, *given)
    # pmap gives the state back on a mesh of its own: without this the next
    # step's calls would be traced again.
    return jax.device_put(state, replicated(mesh)), sums

  def put_batch(batch):
    check_batch(mesh, mini_batches, batch)
    return global_batch(mesh, batch)

  put_whole = lambda tree: place_copy(tree, replicated(mesh))
  return {
    'generate': run_generate,
    'prove': run_prove,
    'score': of_traces(score),
    'value': of_traces(value),
    'update': run_update,
    'put_params': put_whole,
    'put_state': put_whole,
    'put_batch': put_batch,
    'get': gather_to_host,
  }
