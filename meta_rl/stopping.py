"""When to stop thinking: scores of prefixes, and rules that read them.

After some of its episodes a trace may think on or answer. A rule looks at a
score of the prefix and stops at the first boundary where it is good enough:

  budget      never; thinking ends at the model's own stop or at the budget
  episodes    a number of episodes was thought
  confidence  p = prod_i mu(a_i | c, a_<i), the probability of the model's own
              greedy forced answer a, is at least the threshold
  agreement   the forced answer is the same as at the threshold - 1 boundaries
              before
  progress    the gain in J per token that is predicted is at most the threshold

The last is the rule of least regret: where a token costs lambda, thinking on
for d tokens is worth it while E[J(t + d) - J(t)] > lambda d for some d. The
best such rate is the index of a prefix (after Gittins 1979, on a grid of
horizons d, for plans fixed ahead), and stopping where it falls to lambda is
optimal where gains shrink along a trace. A trace that ends before d tokens
still counts d: near its own stop the index is a lower bound. It takes a small
head on the model's own features and no probe; confidence and agreement pay for
an answer at every boundary.

Axes: B traces, K episodes, D features, E hidden units, G horizons, A answer
tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl import checks
from meta_rl.types import Array

KINDS = ('budget', 'confidence', 'agreement', 'progress', 'episodes')
PROBING = ('confidence', 'agreement')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProgressHead:
  """A two-layer network from a prefix's features to J now and later.

  Attributes:
    shift, scale: f32[D], of the features: (x - shift) * scale.
    hidden: f32[D+1,E], and bias: f32[E], of the first layer.
    out: f32[E,G+1], and out_bias: f32[G+1], of the second: logits of J now and
      after each horizon.
    horizons: f32[G], tokens, increasing, > 0.
    budget: f32[], tokens; the last input is the tokens thought, as a share.

  Example, of one feature, one unit and one horizon:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> head = stopping.ProgressHead(
    ...   shift=jnp.zeros(1), scale=jnp.ones(1), hidden=jnp.zeros((2, 1)),
    ...   bias=jnp.zeros(1), out=jnp.zeros((1, 2)), out_bias=jnp.zeros(2),
    ...   horizons=jnp.array([9.0]), budget=jnp.array(36.0)
    ... )
    >>> head.horizons.tolist()
    [9.0]
  """

  shift: Array
  scale: Array
  hidden: Array
  bias: Array
  out: Array
  out_bias: Array
  horizons: Array
  budget: Array


def predict_success(head: ProgressHead, features: Array, thought: Array):
  """Returns J now f32[...] and after each horizon f32[...,G], as predicted.

  Args:
    head: of the policy.
    features: f32[...,D], of the prefix's last token, before the vocabulary.
    thought: i32[...], thinking tokens so far.

  Example, a head that has learnt nothing yet:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> head = stopping.ProgressHead(
    ...   shift=jnp.zeros(1), scale=jnp.ones(1), hidden=jnp.zeros((2, 1)),
    ...   bias=jnp.zeros(1), out=jnp.zeros((1, 2)), out_bias=jnp.zeros(2),
    ...   horizons=jnp.array([9.0]), budget=jnp.array(36.0)
    ... )
    >>> x, thought = jnp.ones((1, 1)), jnp.array([9])
    >>> now, later = stopping.predict_success(head, x, thought)
    >>> now.tolist(), later.tolist()
    ([0.5], [[0.5]])
  """
  features = jnp.asarray(features)
  if features.shape[-1:] != head.shift.shape:
    raise ValueError(
      f'features have {features.shape[-1:]} columns, and the head was fitted '
      f'to {head.shift.shape}: fit one to this model.'
    )
  x = (features.astype(jnp.float32) - head.shift) * head.scale
  share = (thought / head.budget)[..., None].astype(jnp.float32)
  x = jnp.concatenate([x, share], -1)
  hidden = jax.nn.gelu(x @ head.hidden + head.bias)
  found = jax.nn.sigmoid(hidden @ head.out + head.out_bias)
  return found[..., 0], found[..., 1:]


def progress_index(
  head: ProgressHead, features: Array, thought: Array
) -> Array:
  """Returns the best predicted gain a token, f32[...].

    index = max_g (J(t + d_g) - J(t)) / d_g

  A policy that pays `price` a token stops where index <= price.

  Args:
    head, features, thought: as in `predict_success`.

  Example, where J is predicted to stay as it is:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> head = stopping.ProgressHead(
    ...   shift=jnp.zeros(1), scale=jnp.ones(1), hidden=jnp.zeros((2, 1)),
    ...   bias=jnp.zeros(1), out=jnp.zeros((1, 2)), out_bias=jnp.ones(2),
    ...   horizons=jnp.array([9.0]), budget=jnp.array(36.0)
    ... )
    >>> x, thought = jnp.ones((1, 1)), jnp.array([0])
    >>> stopping.progress_index(head, x, thought).tolist()
    [0.0]

  Source: Gittins 1979, Bandit processes and dynamic allocation indices,
  section 2; on a grid of horizons, and for plans fixed ahead.
  """
  now, later = predict_success(head, features, thought)
  return ((later - now[..., None]) / head.horizons).max(-1)


def confidence(log_probs: Array, mask: Array) -> Array:
  """Returns the probability of an answer f32[...], the product of its tokens'.

  Args:
    log_probs: f32[...,A], nats.
    mask: bool[...,A], True on the answer and its EOS; without any, not even
      EOS, nothing was asked, and the confidence is 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5, 0.1]]))
    >>> mask = jnp.array([[True, True, False]])
    >>> stopping.confidence(log_probs, mask).tolist()
    [0.25]
  """
  total = jnp.where(mask, log_probs, 0.0).sum(-1)
  return jnp.where(mask.any(-1), jnp.exp(total), 0.0)


def same_answer(a: Array, a_mask: Array, b: Array, b_mask: Array) -> Array:
  """Returns bool[...], whether two answers have the same tokens.

  Rows without a token, not even EOS, were not asked and agree with none.

  Args:
    a, b: i32[...,A]; a_mask, b_mask: bool[...,A].

  Example, in which only the first tokens count:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> mask = jnp.array([True, False])
    >>> a, b = jnp.array([7, 1]), jnp.array([7, 2])
    >>> bool(stopping.same_answer(a, mask, b, mask))
    True
  """
  equal = (a_mask == b_mask) & (
    jnp.where(a_mask, a, 0) == jnp.where(b_mask, b, 0)
  )
  return equal.all(-1) & a_mask.any(-1)


def agreement(answers: Array, mask: Array) -> Array:
  """Returns how many probes in a row gave the answer of each, f32[B,K+1].

      answers  x y y y z      agreement  1 1 2 3 1

  Args:
    answers: i32[B,K+1,A], forced answers along each trace.
    mask: bool[B,K+1,A].

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> answers = jnp.array([[[4], [5], [5], [5], [6]]])
    >>> stopping.agreement(answers, jnp.ones(answers.shape, bool)).tolist()
    [[1.0, 1.0, 2.0, 3.0, 1.0]]
  """

  def step(streak, pair):
    streak = next_streak(streak, *pair)
    return streak, streak

  along = lambda x: jnp.moveaxis(x, 1, 0)
  previous = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
  own = along(answers), along(mask)
  pairs = (*own, previous(own[0]), previous(own[1]))
  _, streaks = jax.lax.scan(step, jnp.zeros(answers.shape[0]), pairs)
  return jnp.moveaxis(streaks, 0, 1)


def next_streak(
  streak: Array, answer: Array, mask: Array, last: Array, last_mask: Array
) -> Array:
  """Returns the length of the run of equal answers, one probe later, f32[B].

  Args:
    streak: f32[B], up to the probe before.
    answer: i32[B,A], with its mask bool[B,A].
    last: i32[B,A], of the probe before, with its mask bool[B,A]; all False
      where there was none.

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> answer, mask = jnp.array([[5], [5]]), jnp.ones((2, 1), bool)
    >>> last, streak = jnp.array([[5], [4]]), jnp.array([2.0, 2.0])
    >>> stopping.next_streak(streak, answer, mask, last, mask).tolist()
    [3.0, 1.0]
  """
  same = same_answer(answer, mask, last, last_mask)
  return jnp.where(same, streak + 1, mask.any(-1).astype(jnp.float32))


def stops(kind: str | Array, score: Array, threshold: float | Array) -> Array:
  """Returns bool[...], whether a rule stops at a prefix with this score.

  Args:
    kind: one of KINDS, or their indices i32[...] where rows differ.
    score: f32[...], as the kind reads it.
    threshold: a probability, a number of probes, a price in J a token, or a
      number of episodes.

  Example:
    >>> import jax.numpy as jnp
    >>> from meta_rl import stopping
    >>> stopping.stops('confidence', jnp.array([0.2, 0.9]), 0.5).tolist()
    [False, True]
    >>> stopping.stops('progress', jnp.array([0.002, 0.02]), 0.01).tolist()
    [True, False]
  """
  if isinstance(kind, str):
    checks.check_choice('stop rule', kind, KINDS)
    kind = KINDS.index(kind)
  high, low = score >= threshold, score <= threshold
  progress, budget = KINDS.index('progress'), KINDS.index('budget')
  return jnp.where(kind == progress, low, high) & (kind != budget)
