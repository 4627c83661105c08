"""One optimizer step: micro-batches, global-norm clipping, optax.

A loss gives (sum, count); sums of gradients, losses and metrics are added over
micro-batches and devices and divided once, so the step does not depend on how
the batch was cut. (A mean of micro-batch means weighs a token of a short
micro-batch more.)
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from meta_rl import checks, lora
from meta_rl.types import Array, Params, WeightedSum

Metrics = dict[str, WeightedSum]
LossFn = Callable[[Params, dict], tuple[WeightedSum, Metrics]]
Trainable = Callable[[str], bool]  # of a parameter's path, 'layers/q/kernel'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that training changes: what a checkpoint must hold.

  Attributes:
    params: parameters of the policy.
    opt_state: optax state.
    step: i32[], training steps taken (one rollout each).
    key: PRNG key of the run; step s uses `fold_in(key, s)`, so nothing about
      randomness is lost or repeated on resume.
  """

  params: Params
  opt_state: optax.OptState
  step: Array
  key: Array


def init_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  seed: int,
  trainable: Trainable | None = None,
) -> TrainState:
  """Returns the state of a run that has taken no step.

  Args:
    params: of the policy.
    optimizer: an optax transformation; it keeps nothing of what is frozen.
    seed: of the run.
    trainable: which parameters are trained; None: all.

  Raises:
    ValueError: an argument of another kind.
  """
  _check_optimizer(optimizer)
  checks.check_callable('trainable', trainable, optional=True)
  seed = checks.check_counts('seed', seed, high=2**32 - 1)
  own = params if trainable is None else lora.split(params, trainable)[0]
  return TrainState(
    params=params,
    opt_state=optimizer.init(own),
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key(seed),
  )


def split_batch(batch: dict, parts: int) -> dict:
  """Returns the batch cut into `parts`: [B,...] -> [parts,B/parts,...].

  Rows stay in order, so that the groups of a prompt stay together.

  Raises:
    ValueError: a batch without rows or of several lengths, or parts that do not
      divide it.
  """
  checks.check_count('parts', parts)
  shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
  if not shapes or () in shapes:
    raise ValueError(
      f'batch must hold arrays with B rows each, got {checks.show(batch)}'
    )
  rows = {shape[0] for shape in shapes}
  if len(rows) != 1 or (size := rows.pop()) % parts:
    raise ValueError(
      f'a batch of {sorted(rows) or size} rows cannot be cut into {parts} '
      'equal parts: choose a divisor of the number of rows.'
    )
  cut = lambda x: x.reshape(parts, size // parts, *x.shape[1:])
  return jax.tree.map(cut, batch)


def gradients(
  loss_fn: LossFn,
  params: Params,
  batch: dict,
  *,
  micro_batches: int = 1,
  length_buckets: Sequence[int] = (),
  axis_name: str | None = None,
  trainable: Trainable | None = None,
) -> tuple[Params, WeightedSum, Metrics]:
  """Returns the gradient of the mean loss over a batch, and what it measured.

    grad = Σ grad(total) / Σ weight, sums over micro-batches and devices

  Args:
    loss_fn: `(params, micro_batch) -> (WeightedSum, metrics)`.
    params: parameters.
    batch: arrays with B rows each.
    micro_batches: number of equal parts processed one after the other.
    length_buckets: columns. Rows are sorted by length, and each micro-batch is
      cut to the first bucket that holds its longest row, so that short traces
      don't pay for the longest one. Needs `token_mask` in the batch; the sums
      are the same in another order.
    axis_name: of the mapped data axis under `jax.pmap` or `shard_map`.
    trainable: which parameters are differentiated; None: all. The gradient
      holds these alone.

  Returns:
    The gradient, the loss and the metrics; the last two not yet divided.

  Raises:
    ValueError: an argument of another kind, a batch that cannot be cut, or an
      axis that is not mapped here.
  """
  checks.check_callable('loss_fn', loss_fn)
  checks.check_callable('trainable', trainable, optional=True)
  checks.check_count('micro_batches', micro_batches)
  checks.check_ids('length_buckets', length_buckets, empty=True)
  checks.check_axis('axis_name', axis_name)
  if len(length_buckets) and 'token_mask' not in batch:
    raise ValueError(
      f'batch must hold token_mask with length_buckets={length_buckets}, got '
      f'{list(batch)}'
    )
  frozen = None
  if trainable is not None:
    params, frozen = lora.split(params, trainable)

  def total(p, part):
    whole = p if frozen is None else lora.join(p, frozen)
    loss, metrics = loss_fn(whole, part)
    return loss.total, (loss, metrics)

  grad_fn = jax.grad(total, has_aux=True)
  if len(length_buckets):
    batch = sort_by_length(batch)
    grad_fn = cut_to_length(grad_fn, length_buckets)
  if axis_name is not None:
    params = _varying(params, axis_name)
  if micro_batches == 1:
    sums = grad_fn(params, batch)
  else:
    parts = split_batch(batch, micro_batches)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts)),
    )
    add = lambda sums, part: (
      jax.tree.map(jnp.add, sums, grad_fn(params, part)),
      None,
    )
    if axis_name is not None:
      zeros = _varying(zeros, axis_name)
    sums, _ = jax.lax.scan(add, zeros, parts)
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)
  grads, (loss, metrics) = sums
  scale = jnp.where(loss.weight == 0, 0.0, 1.0 / jnp.maximum(loss.weight, 1e-9))
  return jax.tree.map(lambda g: g * scale, grads), loss, metrics


def row_lengths(token_mask: Array) -> Array:
  """Returns i32[B], the columns of each row up to its last token."""
  columns = jnp.arange(1, token_mask.shape[1] + 1)
  return jnp.where(token_mask, columns, 0).max(1)


def sort_by_length(batch: dict) -> dict:
  """Returns the batch with its rows in order of length, short ones first."""
  order = jnp.argsort(row_lengths(batch['token_mask']))
  return jax.tree.map(lambda x: jnp.take(x, order, axis=0), batch)


def cut_to_length(fn: Callable, length_buckets: Sequence[int]) -> Callable:
  """Returns `fn(params, part)` that leaves out columns where all is padding.

  Every array of the part whose second axis is as long as `token_mask`'s is cut.
  One branch is compiled a bucket, the whole length included; which one runs is
  decided on the device.
  """

  def cut(params, part):
    whole = part['token_mask'].shape[1]
    lengths = sorted({n for n in length_buckets if 0 < n < whole} | {whole})

    def branch(length):
      short = lambda x: (
        x[:, :length] if x.ndim > 1 and x.shape[1] == whole else x
      )
      return lambda p, x: fn(p, jax.tree.map(short, x))

    longest = row_lengths(part['token_mask']).max()
    index = jnp.searchsorted(jnp.asarray(lengths), longest)
    return jax.lax.switch(index, [branch(n) for n in lengths], params, part)

  return cut


def _varying(tree, axis_name):
  """Returns the tree with each leaf marked as one device's own.

  `shard_map` adds up the gradient of a replicated value over devices by itself;
  a psum behind that would count every device as often as there are devices.
  """
  own = lambda x: axis_name in jax.typeof(x).manual_axis_type.varying
  cast = lambda x: jax.lax.pcast(x, axis_name, to='varying')
  return jax.tree.map(lambda x: x if own(x) else cast(x), tree)


def optimizer_step(
  state: TrainState,
  batch: dict,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  micro_batches: int = 1,
  length_buckets: Sequence[int] = (),
  axis_name: str | None = None,
  trainable: Trainable | None = None,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one optimizer step on a batch, and its metrics.

  Args:
    state: before the step; `step` and `key` are left as they are.
    batch: arrays with B rows each, whatever `loss_fn` reads.
    loss_fn: `(params, micro_batch) -> (WeightedSum, metrics)`.
    optimizer: an optax transformation; clipping is part of it.
    micro_batches: parts of the batch processed one after the other.
    length_buckets: as in `gradients`.
    axis_name: of the mapped data axis, if any.
    trainable: as in `gradients`.

  Raises:
    ValueError: as in `gradients`.
  """
  _check_state(state)
  _check_optimizer(optimizer)
  grads, loss, metrics = gradients(
    loss_fn,
    state.params,
    batch,
    micro_batches=micro_batches,
    length_buckets=length_buckets,
    axis_name=axis_name,
    trainable=trainable,
  )
  own, frozen = state.params, None
  if trainable is not None:
    own, frozen = lora.split(state.params, trainable)
  updates, opt_state = optimizer.update(grads, state.opt_state, own)
  params = optax.apply_updates(own, updates)
  if frozen is not None:
    params = lora.join(params, frozen)
  one = jnp.ones(())
  metrics = metrics | {
    'loss/total': loss,
    'optimizer/grad_norm': WeightedSum(optax.tree.norm(grads), one),
    'optimizer/update_norm': WeightedSum(optax.tree.norm(updates), one),
  }
  return (
    dataclasses.replace(state, params=params, opt_state=opt_state),
    metrics,
  )


def update(
  state: TrainState,
  batch: dict,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  mini_batches: int = 1,
  epochs: int = 1,
  micro_batches: int = 1,
  length_buckets: Sequence[int] = (),
  axis_name: str | None = None,
  trainable: Trainable | None = None,
) -> tuple[TrainState, Metrics]:
  """Returns the state after all optimizer steps on one rollout.

  The rollout is cut into `mini_batches`, each gives one optimizer step, and
  the whole is gone through `epochs` times: mini_batches * epochs optimizer
  steps, one after the other. (Not micro_batches * epochs: a step sees its whole
  mini-batch.) `state.step` grows by one.

  Args:
    state: before.
    batch: arrays with B rows each; B divisible by mini_batches * micro_batches.
    loss_fn: `(params, micro_batch) -> (WeightedSum, metrics)`.
    optimizer: an optax transformation.
    mini_batches: optimizer steps a pass over the rollout.
    epochs: passes over the rollout.
    micro_batches: parts of each mini-batch; they save memory and change nothing
      else.
    length_buckets: as in `gradients`.
    axis_name: of the mapped data axis, if any.
    trainable: as in `gradients`.

  Returns:
    The new state and the metrics of every optimizer step, in order: sums with a
    leading axis [mini_batches * epochs]. `to_scalars` sums up.

  Raises:
    ValueError: as in `gradients`.
  """
  _check_state(state)
  checks.check_count('mini_batches', mini_batches)
  checks.check_count('epochs', epochs)

  def step(carry, part):
    return optimizer_step(
      carry,
      part,
      loss_fn=loss_fn,
      optimizer=optimizer,
      micro_batches=micro_batches,
      length_buckets=length_buckets,
      axis_name=axis_name,
      trainable=trainable,
    )

  if mini_batches * epochs == 1:
    state, metrics = step(state, batch)
    metrics = jax.tree.map(lambda x: x[None], metrics)
  else:
    parts = split_batch(batch, mini_batches)
    passes = lambda carry, _: jax.lax.scan(step, carry, parts)
    state, metrics = jax.lax.scan(passes, state, length=epochs)
    metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
  return dataclasses.replace(state, step=state.step + 1), metrics


def _check_state(state):
  if not isinstance(state, TrainState):
    raise ValueError(
      f'state must be a TrainState, of init_state, got {checks.show(state)}'
    )


def _check_optimizer(optimizer):
  if not hasattr(optimizer, 'init') or not hasattr(optimizer, 'update'):
    raise ValueError(
      f'optimizer must be an optax one, got {checks.show(optimizer)}'
    )


# Measured on the first optimizer step alone, when the policy that is trained is
# still the one that sampled.
ON_POLICY = ('policy/log_prob_gap',)


def to_scalars(metrics: Metrics) -> dict[str, float]:
  """Returns floats (host) from the metrics of `update`, divided once here."""
  scalars = {}
  for name, sums in metrics.items():
    steps = slice(0, 1) if name in ON_POLICY else slice(None)
    total, weight = sums.total[steps].sum(), sums.weight[steps].sum()
    scalars[name] = float(total / weight) if weight else 0.0
  return scalars
