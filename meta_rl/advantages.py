"""Advantages: per trace in a group, per episode, then per token.

Axes: P prompts, G group, B = P * G traces, T tokens, K episodes, S budgets.
Nothing here is differentiated: advantages are constants of the policy gradient.

Three credits of progress that are easily confused (r = progress, w = weights):

  immediate               α·r_j, the literal gradient of MRT's objective, whose
                          prefixes come from the previous policy
  return-to-go            α·Σ_{i>=j} r_i = α·(J_k - J_j): in expectation the
                          outcome gradient with J as a baseline
  weighted return-to-go   Σ_{i>=j} w_i·r_i, the area under J over tokens
"""

import jax
import jax.numpy as jnp

from meta_rl import checks, masked

Array = jax.Array

SCALES = ('std', 'none')
KINDS = ('immediate', 'return_to_go')
BASELINE_ROWS = ('reaching', 'continuing')


def group_normalize(
  rewards: Array,
  *,
  scale: str = 'std',
  ddof: int = 1,
  eps: float = 1e-4,
  valid: Array | None = None,
) -> Array:
  """Returns rewards relative to their group.

    A = (r - mean) / (std + eps), or r - mean with scale 'none'

  A group of equal rewards gives exactly 0. Without that guard the rounding of
  the mean is divided by eps and comes out as a signal.

  Args:
    rewards: f32[P,G], one group a row.
    scale: 'std' (GRPO) or 'none' (Dr. GRPO).
    ddof: 1 for the sample standard deviation, 0 for the population's.
    eps: >= 0, added outside the root.
    valid: bool[P,G], the traces that have a reward; None: all. The others are
      left out of the mean and the std, and may hold anything.

  Returns:
    f32[P,G]; 0 where not valid, and for a trace that is alone in its group.

  Raises:
    ValueError: wrong shape or dtype, unknown scale, G = 1, or ddof not 0 or 1.

  Example:
    >>> import numpy as np
    >>> from meta_rl import advantages
    >>> rewards = [[1.0, 0.0, 1.0, 1.0]]  # mean 0.75, std 0.5
    >>> print(np.asarray(advantages.group_normalize(rewards)).round(3))
    [[ 0.5 -1.5  0.5  0.5]]
    >>> advantages.group_normalize(rewards, scale='none').tolist()
    [[0.25, -0.75, 0.25, 0.25]]

  Source: DeepSeekMath (arXiv 2402.03300); Dr. GRPO (arXiv 2503.20783).
  """
  rewards = checks.as_array('rewards', rewards, 'float[P,G]')
  checks.check_choice('scale', scale, SCALES)
  ddof = checks.check_count('ddof', ddof, low=0, high=1)
  checks.check_scalar('eps', eps, low=0)
  _check_group('rewards', rewards, axis=1)
  centred, size, constant = _centre(rewards, valid)
  if scale == 'std':
    variance = jnp.sum(centred**2, axis=1, keepdims=True)
    # A trace alone has no std: it is a constant group.
    variance = variance / jnp.maximum(size - ddof, 1)
    centred = centred / (jnp.sqrt(variance) + eps)
  return jnp.where(constant, 0.0, centred)


def leave_one_out(rewards: Array, *, valid: Array | None = None) -> Array:
  """Returns rewards minus the mean of the others of their group (RLOO).

    A_g = r_g - mean_{h != g} r_h = (r_g - mean)·G / (G - 1)

  The baseline does not depend on the trace it is subtracted from, so the
  gradient is unbiased.

  Args:
    rewards: f32[P,G], one group a row.
    valid: bool[P,G], the traces that have a reward; None: all. The others are
      nobody's 'others', and may hold anything.

  Returns:
    f32[P,G]; exactly 0 in a group of equal rewards, where not valid, and for a
    trace that is alone in its group.

  Raises:
    ValueError: wrong shape or dtype, or G = 1.

  Example:
    >>> import numpy as np
    >>> from meta_rl import advantages
    >>> print(np.asarray(advantages.leave_one_out([[1.0, 0.0, 0.0]])).round(3))
    [[ 1.  -0.5 -0.5]]

  Source: Ahmadian et al. 2024 (arXiv 2402.14740).
  """
  rewards = checks.as_array('rewards', rewards, 'float[P,G]')
  _check_group('rewards', rewards, axis=1)
  centred, size, constant = _centre(rewards, valid)
  centred = centred * size / jnp.maximum(size - 1, 1)
  return jnp.where(constant, 0.0, centred)


def brpo(scores: Array, prior: Array) -> Array:
  """Returns the advantage of the tokens between each two budgets.

    R_s  = Σ_{k>=s} p_k·score_k
    V1_s = (Σ_{k<s} 2^k·score_k / Σ_{k<s} 2^k)·Σ_{k>=s} p_k,  0 for s = 0
    V2_s = mean of R_s over the group
    A_s  = R_s - (s·V1_s + (S - s)·V2_s) / S

  Early on the group is the better baseline, later the trace's own past is: V1
  looks only at scores before s, so it may be subtracted. (Tokens of the
  summaries take their score minus the mean of the same budget's summaries.)

  Args:
    scores: f32[P,G,S], mean score of the summaries written at budget s.
    prior: f32[S], probability of each budget, sum 1.

  Returns:
    f32[P,G,S].

  Raises:
    ValueError: wrong shape or dtype, or G = 1.

  Example:
    >>> import numpy as np
    >>> from meta_rl import advantages
    >>> scores = [[[0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 0.25, 0.5]]]
    >>> found = advantages.brpo(scores, [0.25] * 4)
    >>> print(np.asarray(found[0, 0]).round(4))
    [0.125  0.2031 0.1927 0.1362]

  Source: AnytimeReasoner (arXiv 2505.13438), section 3.
  """
  dims = {}
  scores = checks.as_array('scores', scores, 'float[P,G,S]', dims)
  _check_group('scores', scores, axis=1)
  checks.check_filled('scores', scores)
  prior = checks.as_array('prior', prior, 'float[S]', dims)

  num = dims['S']
  s = jnp.arange(num, dtype=scores.dtype)
  # 2^k / Σ_{k<s} 2^k = 2^(k-s) / (1 - 2^-s): no power that can overflow.
  past = jnp.tril(jnp.exp2(s - s[:, None]), -1)
  past = masked.safe_divide(past, 1 - jnp.exp2(-s[:, None]))
  returns = masked.reverse_cumsum(prior * scores)
  own = jnp.sum(past * scores[..., None, :], axis=-1)
  own = own * masked.reverse_cumsum(prior)
  group = jnp.mean(returns, axis=1, keepdims=True)
  return returns - (s * own + (num - s) * group) / num


def episode_weights(
  ends: Array, *, horizon: int | float | Array, outcome_mass: float = 0.0
) -> Array:
  """Returns the share of token budgets that an episode's progress counts for.

    w_j = (1 - ρ)·max(0, 1 - e_j/H) + ρ,   e_j = ends[j+1] - ends[0]

  P(b >= e_j) for a budget b that is uniform on (0, H] with probability 1 - ρ
  and unlimited with probability ρ. ρ = 0 is minus the token-weighted regret,
  ρ = 1 the outcome.

  Args:
    ends: i32[B,K+1], tokens.
    horizon: H, tokens, > 0.
    outcome_mass: ρ in [0, 1]; 0.3 to 0.5 keeps the accuracy at full budget.

  Returns:
    f32[B,K] in [ρ, 1].

  Raises:
    ValueError: wrong shape or dtype, horizon <= 0, or ρ outside [0, 1].

  Example:
    >>> from meta_rl import advantages
    >>> ends = [[3, 5, 9]]  # e_0 = 2, e_1 = 6
    >>> advantages.episode_weights(ends, horizon=8).tolist()
    [[0.75, 0.25]]
    >>> advantages.episode_weights(
    ...   ends, horizon=8, outcome_mass=0.5
    ... ).tolist()
    [[0.875, 0.625]]
  """
  ends = checks.as_array('ends', ends, 'int[B,K+1]')
  checks.check_scalar('horizon', horizon, above=0)
  checks.check_scalar('outcome_mass', outcome_mass, low=0, high=1)
  left = jnp.maximum(0.0, 1.0 - (ends[:, 1:] - ends[:, :1]) / horizon)
  return (1.0 - outcome_mass) * left + outcome_mass


def episode_credit(
  progress: Array, weights: Array, *, kind: str = 'immediate'
) -> Array:
  """Returns the credit of each episode, up to the caller's factor α.

    immediate:    w_j·r_j
    return_to_go: Σ_{i>=j} w_i·r_i

  Progress below 0 counts: clipping it would reward going back and forth.

  Args:
    progress: f32[B,K], 0 from the trace's count on.
    weights: f32[B,K].
    kind: 'immediate' or 'return_to_go'.

  Returns:
    f32[B,K].

  Raises:
    ValueError: wrong shape or dtype, or an unknown kind.

  Example:
    >>> from meta_rl import advantages
    >>> given = [[0.25, 0.5]], [[0.75, 0.25]]
    >>> advantages.episode_credit(*given).tolist()
    [[0.1875, 0.125]]
    >>> advantages.episode_credit(*given, kind='return_to_go').tolist()
    [[0.3125, 0.125]]

  Source: arXiv 2503.07572, section 6.
  """
  dims = {}
  progress = checks.as_array('progress', progress, 'float[B,K]', dims)
  weights = checks.as_array('weights', weights, 'float[B,K]', dims)
  checks.check_choice('kind', kind, KINDS)
  credit = progress * weights
  return credit if kind == 'immediate' else masked.reverse_cumsum(credit)


def returns(
  progress: Array,
  weights: Array,
  lengths: Array,
  count: Array,
  *,
  price: float | Array = 0.0,
  horizon: int | float | Array,
) -> Array:
  """Returns what thinking on from each boundary brought, net of its tokens.

    R_j = Σ_{j <= i < count} (w_i·r_i - λ·len_i/H),   0 for j >= count

  Stopping returns 0, so thinking pays while its return is positive. Without a
  price, progress after the last gain is 0 and nothing teaches when to stop.

  Args:
    progress: f32[B,K].
    weights: f32[B,K].
    lengths: i32[B,K], tokens of each episode.
    count: i32[B], number of episodes, 0..K.
    price: λ, success probability that a horizon of tokens costs, >= 0.
    horizon: H, tokens, > 0.

  Returns:
    f32[B,K+1], one value a boundary.

  Raises:
    ValueError: wrong shape or dtype, price < 0, or horizon <= 0.

  Example:
    >>> from meta_rl import advantages
    >>> advantages.returns(
    ...   [[0.25, 0.5]],
    ...   [[0.75, 0.25]],
    ...   [[2, 4]],
    ...   [2],
    ...   price=0.5,
    ...   horizon=8,
    ... ).tolist()  # 0.1875 - 0.125 and 0.125 - 0.25, summed from behind
    [[-0.0625, -0.125, 0.0]]
  """
  dims = {}
  progress = checks.as_array('progress', progress, 'float[B,K]', dims)
  weights = checks.as_array('weights', weights, 'float[B,K]', dims)
  lengths = checks.as_array('lengths', lengths, 'int[B,K]', dims)
  count = checks.as_array('count', count, 'int[B]', dims)
  checks.check_scalar('price', price, low=0)
  checks.check_scalar('horizon', horizon, above=0)
  gain = progress * weights - price * lengths / horizon
  inside = jnp.arange(dims['K']) < count[:, None]
  total = masked.reverse_cumsum(masked.select(inside, gain))
  return jnp.pad(total, ((0, 0), (0, 1)))


def prover_baseline(
  returns: Array,
  success: Array,
  count: Array,
  *,
  ridge: float = 1e-3,
  min_rows: int = 16,
  rows: str = 'reaching',
  axis_name: str | None = None,
  valid: Array | None = None,
  inside: Array | None = None,
) -> Array:
  """Returns the baseline of every boundary, with the prover as the critic.

    b_ij = a + c·(1 - J_ij), (a, c) fitted by ridge regression of the returns at
    boundary j over all rows i' != i that reach it

  Rows that stop at j reach it too, with return 0: a baseline fitted to and
  subtracted from the continuing rows alone would make the gradient of 'stop or
  go on' vanish. Leaving row i out makes its baseline independent of what it
  returned, so the gradient stays unbiased. It equals y - e/(1 - h) of the full
  fit (residual e, leverage h); here the sums of the fit are downdated by the
  row instead, whose denominator is at least `ridge` whatever the leverage.

  Args:
    returns: f32[B,K+1], return of thinking on from each boundary; 0 at count.
    success: f32[B,K+1], J, probability.
    count: i32[B], number of episodes; the row reaches boundaries j <= count.
    ridge: penalty on the squared slope, > 0; the intercept has none.
    min_rows: with fewer rows at a boundary the slope is 0: the mean of the
      other rows.
    rows: 'reaching', or 'continuing': the baseline is fitted to, and given to,
      the rows that go on from j alone (j < count). It is the mistake that is
      spoken of above, kept as the control of an ablation.
    axis_name: mapped axis (shard_map, pmap, vmap) over which the rows are
      spread; the fit then takes in the rows of all of it.
    valid: bool[B], rows that take part; None: all. The others are in no fit.
    inside: bool[B], rows that ended inside their last episode: what stands at
      `count` is then no boundary to stop or go on at, and they don't reach it.
      None: no row did. For 'reaching' only: no others look at `count`.

  Returns:
    f32[B,K+1]; 0 where a row does not reach a boundary or is alone at it, for
    rows that are not valid and, of 'continuing', at count.

  Raises:
    ValueError: wrong shape or dtype, ridge <= 0, min_rows < 1, other rows,
      'continuing' with `inside`, or an axis that is not mapped here.

  Example:
    >>> from meta_rl import advantages
    >>> advantages.prover_baseline(
    ...   [[0.5, 0.0], [0.25, 0.0], [0.0, 0.0]],
    ...   [[0.5, 1.0], [0.5, 0.75], [0.5, 0.5]],
    ...   [1, 1, 0],
    ... ).tolist()  # of few rows, the mean of the others
    [[0.125, 0.0], [0.25, 0.0], [0.375, 0.0]]
  """
  dims = {}
  returns = checks.as_array('returns', returns, 'float[B,K+1]', dims)
  success = checks.as_array('success', success, 'float[B,K+1]', dims)
  count = checks.as_array('count', count, 'int[B]', dims)
  checks.check_scalar('ridge', ridge, above=0)
  checks.check_counts('min_rows', min_rows, low=1)
  checks.check_choice('rows', rows, BASELINE_ROWS)
  checks.check_axis('axis_name', axis_name)
  if inside is not None and rows != 'reaching':
    raise ValueError(
      f'inside must be None with rows={rows!r}, which leave out what stands at '
      "count, got an array: it is of rows='reaching'"
    )

  index = jnp.arange(dims['K'] + 1)
  last = count if rows == 'reaching' else count - 1
  if inside is not None:
    last = last - checks.as_array('inside', inside, 'bool[B]', dims)
  reached = index <= last[:, None]
  if valid is not None:
    reached &= checks.as_array('valid', valid, 'bool[B]', dims)[:, None]

  def total(x):
    x = masked.masked_sum(x, reached, axis=0)
    return x if axis_name is None else jax.lax.psum(x, axis_name)

  size = total(jnp.ones_like(returns))
  others = jnp.maximum(size - 1, 1)
  mean_x = total(1 - success) / jnp.maximum(size, 1)
  mean_y = total(returns) / jnp.maximum(size, 1)
  x = masked.select(reached, 1 - success - mean_x)
  y = masked.select(reached, returns - mean_y)
  # Taking row i out moves the means by x/(n-1), y/(n-1) and takes n/(n-1) of
  # its squares out of the sums.
  rest = size / others
  square = jnp.maximum(total(x * x) - rest * x * x, 0)
  slope = (total(x * y) - rest * x * y) / (square + ridge)
  mean = mean_y - y / others
  fitted = mean + slope * rest * x
  baseline = jnp.where(size < min_rows, mean, fitted)
  baseline = masked.select(reached & (size > 1), baseline)
  return jax.lax.stop_gradient(baseline)


def bootstrapped(
  returns: Array, baseline: Array, count: Array, *, decay: float = 1.0
) -> Array:
  """Returns the advantage of what was done at every boundary of a trace.

    δ_j = R_j - R_{j+1} + b_{j+1} - b_j   for j < count, going on
    δ_k = 0 - b_k                         for k = count, stopping
    A_j = Σ_{i=j..count} decay^(i-j)·δ_i

  With decay = 1 it telescopes to R_j - b_j. With decay < 1 the baseline stands
  in for what came later: an episode is judged by where it led (b_{j+1}) and not
  by how later episodes turned out. The prover makes b a good critic, since J
  says most of what matters about a prefix, so that nearly all of the noise of
  later episodes goes and the bias is small. This is GAE with its λ = decay and
  the prover's baseline as the value.

  Args:
    returns: f32[B,K+1], as from `returns`; 0 from count on.
    baseline: f32[B,K+1], as from `prover_baseline`.
    count: i32[B], number of episodes, 0..K.
    decay: in [0, 1]; 1 is unbiased whatever the baseline.

  Returns:
    f32[B,K+1], of the tokens of episode j, and at count of the token that
    stopped; 0 behind it.

  Raises:
    ValueError: wrong shape or dtype, or decay outside [0, 1].

  Example:
    >>> from meta_rl import advantages
    >>> given = [[0.5, 0.25, 0.0]], [[0.25, 0.25, 0.125]], [2]
    >>> advantages.bootstrapped(*given).tolist()
    [[0.25, 0.0, -0.125]]
    >>> advantages.bootstrapped(*given, decay=0.0).tolist()
    [[0.25, 0.125, -0.125]]

  Source: GAE (arXiv 1506.02438), equation 16.
  """
  dims = {}
  returns = checks.as_array('returns', returns, 'float[B,K+1]', dims)
  baseline = checks.as_array('baseline', baseline, 'float[B,K+1]', dims)
  count = checks.as_array('count', count, 'int[B]', dims)
  checks.check_scalar('decay', decay, low=0, high=1)
  index = jnp.arange(dims['K'] + 1)
  goes_on = index < count[:, None]
  later = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
  delta = returns - later(returns) + later(baseline) - baseline
  delta = jnp.where(goes_on, delta, -baseline)
  delta = masked.select(index <= count[:, None], delta)
  ahead = index[:, None] - index  # [i,j], boundaries from j to i
  powers = jnp.where(ahead < 0, 0.0, jnp.power(decay, jnp.maximum(ahead, 0)))
  # HIGHEST: accelerators would multiply in bf16, and advantages are small.
  earned = jnp.matmul(delta, powers, precision=jax.lax.Precision.HIGHEST)
  return jax.lax.stop_gradient(earned)


def gae(
  rewards: Array,
  values: Array,
  mask: Array,
  *,
  discount: float | Array = 1.0,
  decay: float | Array = 0.95,
) -> Array:
  """Returns generalised advantage estimates of the action tokens.

    δ_i = r_i + γ·V_{i+1} - V_i,   A_i = δ_i + γλ·A_{i+1}

  over a row's actions i = 1 … n, whatever lies between them: forced and
  observed tokens are no steps, and the state behind action i is the one before
  action i + 1. A + V is the λ-return that the value is trained on. λ = 1 is the
  return minus V, unbiased with any V; λ = 0 is δ, with the least variance and
  all of V's bias.

  Args:
    rewards: f32[B,T], of each action; a terminal reward at the last one, as
      `terminal_rewards` puts it.
    values: f32[B,T], V of the state before each action; the state behind the
      last one is worth 0. f32[B,T+1]: column T is that state's value, for
      traces that were cut off.
    mask: bool[B,T], actions; elsewhere rewards and values may hold anything.
    discount: γ in [0, 1].
    decay: λ in [0, 1].

  Returns:
    f32[B,T]; 0 where the mask is False.

  Raises:
    ValueError: wrong shape or dtype, or a factor outside [0, 1].

  Example:
    >>> from meta_rl import advantages
    >>> advantages.gae(
    ...   [[0.0, 0.0, 1.0]],
    ...   [[0.5, 0.5, 0.75]],
    ...   [[True, True, True]],
    ...   decay=0.5,
    ... ).tolist()  # δ is 0, 0.25, 0.25
    [[0.1875, 0.375, 0.25]]

  Source: Schulman et al. 2016 (arXiv 1506.02438).
  """
  dims = {}
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  rewards = checks.as_array('rewards', rewards, 'float[B,T]', dims)
  rows, length = mask.shape
  values = checks.to_array('values', values)
  bootstrap = values.shape[-1:] == (length + 1,)
  spec = f'float[B,{length + 1}]' if bootstrap else 'float[B,T]'
  values = checks.as_array('values', values, spec, dims)
  checks.check_scalar('discount', discount, low=0, high=1)
  checks.check_scalar('decay', decay, low=0, high=1)

  rewards = masked.select(mask, rewards)
  final = values[:, length] if bootstrap else jnp.zeros(rows, values.dtype)
  values = masked.select(mask, values[:, :length])
  # The column of the next action; `length` behind the last.
  own = jnp.where(mask, jnp.arange(length), length)
  after = jnp.pad(own[:, 1:], ((0, 0), (0, 1)), constant_values=length)
  after = jax.lax.cummin(after, axis=1, reverse=True)
  extended = jnp.concatenate([values, final[:, None]], axis=1)
  delta = rewards + discount * jnp.take_along_axis(extended, after, 1) - values
  # Where there is no action, A passes through: A_t = 1·A_{t+1} + 0.
  factor = jnp.where(mask, discount * decay, 1.0)
  join = lambda late, early: (
    early[0] * late[0],
    early[0] * late[1] + early[1],
  )
  _, total = jax.lax.associative_scan(
    join, (factor, masked.select(mask, delta)), reverse=True, axis=1
  )
  return masked.select(mask, total)


def terminal_rewards(rewards: Array, mask: Array) -> Array:
  """Returns each trace's reward at its last action, 0 elsewhere.

    In:  reward 2, mask [0, 1, 1, 0, 1, 0]
    Out: [0, 0, 0, 0, 2, 0]

  Args:
    rewards: f32[B].
    mask: bool[B,T], actions; a row without one gets no reward.

  Returns:
    f32[B,T].

  Raises:
    ValueError: wrong shape or dtype.

  Example:
    >>> from meta_rl import advantages
    >>> mask = [[False, True, True, False]]
    >>> advantages.terminal_rewards([2.0], mask).tolist()
    [[0.0, 0.0, 2.0, 0.0]]
  """
  dims = {}
  rewards = checks.as_array('rewards', rewards, 'float[B]', dims)
  mask = checks.as_array('mask', mask, 'bool[B,T]', dims)
  last = masked.last_true_index(mask, axis=1)[:, None]
  return jnp.where(jnp.arange(dims['T']) == last, rewards[:, None], 0.0)


def to_tokens(
  episode_advantages: Array,
  episode_ids: Array,
  *,
  rest: Array,
  stop: Array | None = None,
  stop_index: Array | None = None,
) -> Array:
  """Returns the advantage of every token.

    A_t = episode_advantages[ids_t], rest where ids_t = -1, stop at stop_index

  Args:
    episode_advantages: f32[B,K].
    episode_ids: i32[B,T], as from `episodes.token_ids`, in -1..K-1.
    rest: f32[B], for tokens without an episode: the answer's own advantage.
    stop: f32[B], for the token that ended the thinking; None: `rest`.
    stop_index: i32[B], where that token is (the answer marker), -1 for none.

  Returns:
    f32[B,T].

  Raises:
    ValueError: wrong shape or dtype, or stop without stop_index.

  Example:
    >>> from meta_rl import advantages
    >>> advantages.to_tokens(
    ...   [[0.5, -0.25]],
    ...   [[-1, 0, 0, 1, -1, -1]],
    ...   rest=[1.0],
    ...   stop=[0.0],
    ...   stop_index=[4],
    ... ).tolist()
    [[1.0, 0.5, 0.5, -0.25, 0.0, 1.0]]
  """
  dims = {}
  advantages = checks.as_array(
    'episode_advantages', episode_advantages, 'float[B,K]', dims
  )
  ids = checks.as_array('episode_ids', episode_ids, 'int[B,T]', dims)
  rest = checks.as_array('rest', rest, 'float[B]', dims)
  checks.check_filled('episode_advantages', advantages)
  if stop is not None and stop_index is None:
    raise ValueError('stop needs stop_index, the index of the answer marker')

  spread = jnp.take_along_axis(advantages, jnp.maximum(ids, 0), axis=1)
  result = jnp.where(ids >= 0, spread, rest[:, None])
  if stop_index is None:
    return result
  stop_index = checks.as_array('stop_index', stop_index, 'int[B]', dims)
  stop = (
    rest if stop is None else checks.as_array('stop', stop, 'float[B]', dims)
  )
  is_stop = jnp.arange(ids.shape[1]) == stop_index[:, None]
  return jnp.where(is_stop, stop[:, None], result)


def _check_group(name: str, x: Array, axis: int) -> int:
  """Returns G; raises ValueError if a group has no one to compare with."""
  size = x.shape[axis]
  if size < 2:
    raise ValueError(
      f'{name} has group size {size}: a group baseline compares the traces of '
      'one prompt, so group_size must be at least 2'
    )
  return size


def _centre(
  rewards: Array, valid: Array | None
) -> tuple[Array, int | Array, Array]:
  """Returns rewards minus the mean of their group, its size, and constancy.

  Args:
    rewards: f32[P,G].
    valid: bool[P,G] or None.

  Returns:
    f32[P,G], 0 where not valid; the number of valid traces, an int or
    f32[P,1]; bool[P,1], whether all of them are equal (one, or none, is).
  """
  if valid is None:
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    low = jnp.min(rewards, axis=1, keepdims=True)
    high = jnp.max(rewards, axis=1, keepdims=True)
    return centred, rewards.shape[1], low == high
  dims = {'P': rewards.shape[0], 'G': rewards.shape[1]}
  valid = checks.as_array('valid', valid, 'bool[P,G]', dims)
  size = jnp.sum(valid, axis=1, keepdims=True, dtype=rewards.dtype)
  mean = masked.masked_mean(rewards, valid, axis=1)[:, None]
  centred = masked.select(valid, rewards - mean)
  low = jnp.min(rewards, 1, keepdims=True, where=valid, initial=jnp.inf)
  high = jnp.max(rewards, 1, keepdims=True, where=valid, initial=-jnp.inf)
  return centred, size, low >= high
