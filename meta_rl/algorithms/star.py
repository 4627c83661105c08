"""STaR, rejection fine-tuning and MRT-STaR: imitate one's own best traces.

Axes: P prompts, G group, B = P * G traces, T tokens.
"""

import math

import jax.numpy as jnp

from meta_rl import checks, regret
from meta_rl.algorithms.base import Measured, Selected, grouped

SELECTS = ('any', 'progress')


def star(
  measured: Measured,
  length: int,
  *,
  group_size: int,
  horizon: int,
  select: str = 'any',
  keep_share: float = 1.0,
  max_kept: int | None = None,
) -> Selected:
  """Returns which traces to imitate, each with weight 1 on its own tokens.

  Of the n right traces of a prompt, min(ceil(keep_share n), max_kept) are kept:

    any       the first ones: traces of one prompt are exchangeable, so that is
              a random choice. With the defaults all are kept: STaR
    progress  those that make the most progress: MRT-STaR. The token-weighted
              progress sum_i w_i p_i, w_i = max(0, 1 - e_i/H), is (1 - regret) -
              J_0, and J_0 is one number a prompt: they are those of the lowest
              token-weighted regret. Ties go to the first

  The others leave the loss altogether: a mean over tokens is one over the
  tokens of kept traces. Weight 1 makes `losses.policy_gradient` the negative
  log-likelihood with surrogate='cispo', clip_low = clip_high = 0, whatever the
  traces were sampled from; several `epochs` over a rollout are then several
  passes of fine-tuning on it.

  Departs from STaR: each outer iteration goes on from the current policy and
  not from the base, and no rationalisation makes up for problems without a
  right trace. Departs from RFT: equal traces are not merged into one.

  Args:
    measured: rewards, right is 1 or more; J and boundaries for 'progress'. Of
      traces without a reward (`valid`) none is right.
    length: T.
    group_size: G traces of each prompt, one after the other.
    horizon: H, tokens, of the regret; used by 'progress' alone.
    select: 'any' or 'progress'.
    keep_share: in (0, 1], share of the right traces of a prompt, rounded up.
    max_kept: traces of a prompt at most, >= 1; None: no limit.

  Returns:
    `Selected`: advantages f32[B,T], 1 on kept rows and 0 on others, and
    keep bool[B].

  Raises:
    ValueError: an unknown select, a number outside its range, or 'progress'
      where all right traces are kept whatever their progress.

  Source: STaR, Zelikman et al. 2022 (arXiv 2203.14465); RFT, Yuan et al. 2023
    (arXiv 2308.01825); MRT, Qu et al. 2025 (arXiv 2503.07572), section 6.
  """
  checks.check_choice('select', select, SELECTS)
  checks.check_range('keep_share', keep_share, above=0, high=1)
  if max_kept is not None:
    checks.check_range('max_kept', max_kept, low=1)
  # Of n right traces, for n = 0..G; in Python, where .1 * 10 rounds up to 1.
  limit = group_size if max_kept is None else max_kept
  quota = [
    min(math.ceil(round(keep_share * n, 9)), limit)
    for n in range(group_size + 1)
  ]
  if select == 'progress' and quota == list(range(group_size + 1)):
    raise ValueError(
      f"select='progress' with keep_share={keep_share}, max_kept={max_kept} "
      f'keeps every right trace of {group_size}: lower one of them, or set '
      "select='any'."
    )
  right = grouped(measured.rewards >= 1, group_size)
  if measured.valid is not None:
    right &= grouped(measured.valid, group_size)
  order = jnp.zeros(right.shape, jnp.float32)
  if select == 'progress':
    order = regret.token_weighted(
      measured.success, measured.episodes.ends, horizon=horizon
    ).reshape(right.shape)
  order = jnp.where(right, order, jnp.inf)
  place = jnp.argsort(jnp.argsort(order, axis=1, stable=True), axis=1)
  wanted = jnp.asarray(quota)[right.sum(1)]
  keep = (right & (place < wanted[:, None])).reshape(-1)
  advantages = jnp.broadcast_to(
    keep[:, None].astype(jnp.float32), (len(keep), length)
  )
  return Selected(advantages=advantages, keep=keep)
