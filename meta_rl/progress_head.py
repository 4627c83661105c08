"""Fitting the head that predicts progress (`stopping.ProgressHead`).

Regression of J now and J after each horizon on the features of a prefix, over
all boundaries of sampled traces: cross-entropy with J as a soft target, whose
minimum is the conditional mean, so that predicted gains are calibrated as far
as the head is wide enough.

Axes: N traces, K episodes, D features, G horizons.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_rl import checks, stopping
from meta_rl.types import Array

# Shares of the budget over which gains are predicted.
HORIZONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


class Fit(NamedTuple):
  """A fitted head and how well it does on traces that it was not fitted to.

  Attributes:
    head: the head.
    explained: share of the variance of J now that it predicts.
    explained_gain: the same of the gain over the first horizon.
    bias: mean of the predicted gain less the gain, in J.
    traces: how many it was fitted to.
  """

  head: stopping.ProgressHead
  explained: float
  explained_gain: float
  bias: float
  traces: int


def later_success(
  success: np.ndarray, thought: np.ndarray, horizons: Sequence[float]
) -> np.ndarray:
  """Returns J after each horizon from each boundary on, f[N,K+1,G].

  J_j holds from its boundary until the next, and the last one on.

      thought 0 9 18    success .1 .4 .9    horizon 9  ->  .4 .9 .9

  Args:
    success: f[N,K+1].
    thought: i[N,K+1], thinking tokens at each boundary; past the last it
      repeats, and so does J.
    horizons: G of them, tokens, > 0.
  """
  success, thought = np.asarray(success), np.asarray(thought)
  found = []
  for tokens in horizons:
    reached = thought[:, None, :] <= (thought + tokens)[:, :, None]
    index = np.where(reached, np.arange(thought.shape[1]), 0).max(-1)
    found.append(np.take_along_axis(success, index, axis=1))
  return np.stack(found, -1)


def fit(
  features: np.ndarray,
  thought: np.ndarray,
  success: np.ndarray,
  real: np.ndarray,
  key: Array,
  *,
  budget: int,
  horizons: Sequence[float] | None = None,
  hidden: int = 64,
  steps: int = 2000,
  batch: int = 1024,
  learning_rate: float = 3e-3,
  held_out: float = 0.1,
) -> Fit:
  """Returns a head fitted to the boundaries of sampled traces.

  Args:
    features: f[N,K+1,D], of the last token of each prefix.
    thought: i[N,K+1], thinking tokens there.
    success: f[N,K+1], J.
    real: bool[N,K+1], True where a trace has a boundary that it could think on
      from.
    key: PRNG key.
    budget: thinking tokens, of which the horizons are shares.
    horizons: tokens; None: HORIZONS of the budget.
    hidden: units.
    steps, batch, learning_rate: of Adam with a cosine schedule.
    held_out: share of the traces, the last ones, that only the figures see.

  Raises:
    ValueError: shapes that do not fit, or fewer than 10 traces.
  """
  dims = {}
  features = checks.to_array('features', np.asarray(features, np.float32))
  checks.check_shape('features', features, 'N,K+1,D', dims)
  for name, x in (('thought', thought), ('success', success), ('real', real)):
    checks.check_shape(name, x, 'N,K+1', dims)
  traces, width = dims['N'], dims['D']
  if traces < 10:
    raise ValueError(f'{traces} traces are given; a head needs at least 10.')
  horizons = tuple(horizons or (max(1.0, share * budget) for share in HORIZONS))
  target = later_success(success, thought, horizons)
  target = np.concatenate([np.asarray(success)[..., None], target], -1)
  cut = traces - max(1, round(held_out * traces))
  real = np.asarray(real, bool)
  flat = lambda x, part: jnp.asarray(np.asarray(x)[part][real[part]])
  seen, unseen = slice(cut), slice(cut, None)
  own = flat(features, seen)
  start_key, key = jax.random.split(key)
  head = _fresh(start_key, own, width, hidden, horizons, budget)
  data = own, flat(thought, seen), flat(target, seen)
  head = _descend(
    head, data, key, steps=steps, batch=batch, learning_rate=learning_rate
  )
  now, later = stopping.predict_success(
    head, flat(features, unseen), flat(thought, unseen)
  )
  truth = np.asarray(flat(target, unseen))
  gain = np.asarray(later[:, 0] - now)
  return Fit(
    head=head,
    explained=_explained(np.asarray(now), truth[:, 0]),
    explained_gain=_explained(gain, truth[:, 1] - truth[:, 0]),
    bias=float((gain - truth[:, 1] + truth[:, 0]).mean()),
    traces=cut,
  )


def _explained(found, truth):
  return float(1 - np.square(found - truth).mean() / max(truth.var(), 1e-12))


def _fresh(key, features, width, hidden, horizons, budget):
  first, second = jax.random.split(key)
  normal = lambda key, shape: jax.random.normal(key, shape) / shape[0] ** 0.5
  return stopping.ProgressHead(
    shift=features.mean(0),
    scale=1 / (features.std(0) + 1e-6),
    hidden=normal(first, (width + 1, hidden)),
    bias=jnp.zeros(hidden),
    out=normal(second, (hidden, len(horizons) + 1)) * 0.1,
    out_bias=jnp.zeros(len(horizons) + 1),
    horizons=jnp.asarray(horizons, jnp.float32),
    budget=jnp.asarray(budget, jnp.float32),
  )


_TRAINED = ('hidden', 'bias', 'out', 'out_bias')


@functools.partial(jax.jit, static_argnames=('steps', 'batch', 'learning_rate'))
def _descend(head, data, key, *, steps, batch, learning_rate):
  schedule = optax.cosine_decay_schedule(learning_rate, steps)
  optimizer = optax.adamw(schedule, weight_decay=1e-4)
  fields = {f: getattr(head, f) for f in head.__dataclass_fields__}
  trained = {k: fields[k] for k in _TRAINED}

  def loss(trained, features, thought, target):
    now, later = stopping.predict_success(
      stopping.ProgressHead(**fields | trained), features, thought
    )
    found = jnp.concatenate([now[..., None], later], -1)
    found = jnp.clip(found, 1e-6, 1 - 1e-6)
    return -(target * jnp.log(found) + (1 - target) * jnp.log1p(-found)).mean()

  def step(carry, key):
    trained, state = carry
    rows = jax.random.randint(key, (batch,), 0, len(data[0]))
    grads = jax.grad(loss)(trained, *(x[rows] for x in data))
    updates, state = optimizer.update(grads, state, trained)
    return (optax.apply_updates(trained, updates), state), None

  carry = trained, optimizer.init(trained)
  (trained, _), _ = jax.lax.scan(step, carry, jax.random.split(key, steps))
  return stopping.ProgressHead(**fields | trained)
