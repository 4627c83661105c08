"""Hidden: search among n options, one of them right, with a known optimum.

The prompt says how many options there are, `<bos> 8 = <think>`, and not which
one is right. An episode is one option that the policy tries and the verdict
that the environment gives, `3 no`; the answer is an option:

    <bos> 8 = <think> 3 no 5 no 0 yes </think> 0 <eos>
               J = 1/8  1/7  1/6   1

Nothing about the right option h can be learned but by trying, so the best
policy is known exactly: try what was not tried, answer what got a yes, and
guess among the rest without one. So are the success of every prefix, the
comparator J* and the regret of any policy, in closed form: the task tests
provers, estimators and training against the truth.

Axes: B traces, L tokens, n options, K episodes, A answer tokens.
"""

import functools

import jax.numpy as jnp
import numpy as np

from meta_rl import checks, tokenizer
from meta_rl.models import from_apply_fn
from meta_rl.tasks.base import Task
from meta_rl.types import Array, Model

EPISODE_LENGTH = 2  # an option and its verdict
ANSWER_LENGTH = 2  # an option and EOS
IMPOSSIBLE = -1e30  # finite: a logit that leaves no chance, and never NaN


def hidden_task(*, n: int) -> Task:
  """Returns the token task with n options."""
  check_n(n)
  return Task(
    name='hidden',
    vocab_size=tokenizer.VOCAB_SIZE,
    pad_id=tokenizer.PAD,
    eos_id=tokenizer.EOS,
    think_end_id=tokenizer.END_THINK,
    stop_ids=(tokenizer.END_THINK,),
    delimiter_ids=(tokenizer.YES, tokenizer.NO),
    episode_length=EPISODE_LENGTH,
    answer_length=ANSWER_LENGTH,
    verify=lambda answers, mask, batch: verify_tokens(
      answers, mask, batch['hidden']
    ),
    observe=lambda last, thinking, batch: verdict(
      last, thinking, batch['hidden']
    ),
  )


def check_n(n: int):
  """Raises ValueError unless n options and the number n have tokens."""
  if not 2 <= n <= tokenizer.MAX_INTEGER:
    raise ValueError(f'n={n} options: give 2..{tokenizer.MAX_INTEGER}.')


def prompt_tokens(n: int) -> list[int]:
  """Returns the prompt `<bos> n = <think>`, 4 ids."""
  check_n(n)
  shown = [tokenizer.integer(n), tokenizer.EQUALS, tokenizer.THINK]
  return [tokenizer.BOS, *shown]


def verify_tokens(answer: Array, mask: Array, hidden: Array) -> Array:
  """Returns 1.0 where the answer is the hidden option and EOS, else 0.0.

  Args:
    answer: i32[...,A], the tokens after the answer marker, A >= 2.
    mask: bool[...,A], True on the tokens that count, EOS included.
    hidden: i32[...], the right option; leading axes broadcast.

  Returns:
    f32[...].

  Raises:
    ValueError: wrong shape or dtype.
  """
  answer = checks.as_array('answer', answer, 'int[...,A]')
  mask = checks.as_array('mask', mask, 'bool[...,A]')
  hidden = checks.as_array('hidden', hidden, 'int[...]')
  if answer.shape != mask.shape or answer.shape[-1] < ANSWER_LENGTH:
    raise ValueError(
      f'answer {answer.shape} and mask {mask.shape} must share a shape [...,A] '
      f'with A >= {ANSWER_LENGTH}.'
    )
  right = answer[..., 0] == tokenizer.FIRST_INTEGER + hidden
  ended = answer[..., 1] == tokenizer.EOS
  counts = mask[..., 0] & mask[..., 1] & ~mask[..., 2:].any(-1)
  return (right & ended & counts).astype(jnp.float32)


def verdict(last: Array, thinking: Array, hidden: Array) -> Array:
  """Returns the environment's next token: yes or no behind a tried option.

  Any integer is an option to the environment; one that does not exist (n and
  above) is wrong. Behind any other token, and after thinking, it is silent.

  Args:
    last: i32[B], the token before.
    thinking: bool[B], the answer marker has not come yet.
    hidden: i32[B], the right option.

  Returns:
    i32[B], YES, NO or -1.
  """
  option = last - tokenizer.FIRST_INTEGER
  tried = thinking & (option >= 0) & (option <= tokenizer.MAX_INTEGER)
  said = jnp.where(option == hidden, tokenizer.YES, tokenizer.NO)
  return jnp.where(tried, said, -1).astype(jnp.int32)


# --- the truth: expectations over a uniformly drawn h, on the host ---


def optimal_success(n: int, num_episodes: int) -> np.ndarray:
  """Returns the comparator J*_j, the best expected success after j episodes.

    J*_j = min(1, (j + 1) / n)

  j different options were tried: one of them is right with chance j/n, and if
  none is, a guess among the n - j others is right with chance 1/(n - j), which
  is another 1/n. Trying an option twice adds nothing, so no policy is better at
  any j, and one policy is the best at all of them.

  Args:
    n: options.
    num_episodes: K.

  Returns:
    f64[K+1].
  """
  _check_sizes(n, num_episodes)
  return np.minimum(1.0, (np.arange(num_episodes + 1) + 1) / n)


def optimal_regret(n: int, num_episodes: int) -> float:
  """Returns the cumulative regret of the optimal policy against an oracle.

    sum_{j<K} (1 - J*_j) = m - m (m + 1) / (2 n),   m = min(K, n - 1)

  It is what searching costs whoever does not know h. Against its own curve J*
  the optimal policy has regret 0.

  Args:
    n: options.
    num_episodes: K, all of which count: a trace that stopped holds its J.
  """
  _check_sizes(n, num_episodes)
  m = min(num_episodes, n - 1)
  return m - m * (m + 1) / (2 * n)


def uniform_success(n: int, num_episodes: int) -> np.ndarray:
  """Returns the expected success of trying uniformly, with replacement.

    E J_j = E min(1, (D_j + 1) / n),   D_j different options among j tries

  Answers are optimal; only the search is not. D_j is a Markov chain: the next
  try is new with chance (n - D)/n.

  Args:
    n: options.
    num_episodes: K.

  Returns:
    f64[K+1].
  """
  _check_sizes(n, num_episodes)
  different = np.arange(n + 1)
  value = np.minimum(1.0, (different + 1) / n)
  chance = np.zeros(n + 1)
  chance[0] = 1.0
  success = [chance @ value]
  for _ in range(num_episodes):
    new = chance * (n - different) / n
    chance = chance - new
    chance[1:] += new[:-1]
    success.append(chance @ value)
  return np.asarray(success)


def uniform_regret(n: int, num_episodes: int) -> float:
  """Returns the cumulative regret of uniform tries against the optimum.

    sum_{j<K} (J*_j - E J_j)

  Args:
    n: options.
    num_episodes: K, all of which count: a trace that stopped holds its J.
  """
  gap = optimal_success(n, num_episodes) - uniform_success(n, num_episodes)
  return float(gap[:-1].sum())


def area(success: np.ndarray, *, horizon: int) -> float:
  """Returns the area under a curve of J over tokens, per token.

    (1/H) int_0^H J(t) dt,   J(t) = J_j for 2 j <= t < 2 (j + 1)

  The last value is held to the horizon. The token-weighted regret is the area
  under the comparator less this one.

  Args:
    success: f64[K+1], J after each number of episodes.
    horizon: H, tokens, >= 1.
  """
  success = np.asarray(success, np.float64)
  checks.check_range('horizon', horizon, low=1)
  episode = np.arange(horizon) // EPISODE_LENGTH
  return float(success[np.minimum(episode, len(success) - 1)].mean())


def _check_sizes(n, num_episodes):
  check_n(n)
  checks.check_range('num_episodes', num_episodes, low=0)


# --- policies that attain it ---


def optimal_policy(n: int, *, stops: bool = True) -> Model:
  """Returns the optimal policy as a `Model`; its params are None.

  It tries the options that were not tried, uniformly; once one got a yes or
  only one is left, it ends thinking and answers that. Forced to answer before,
  it guesses uniformly among what is left. It reads the visible tokens alone.

  Args:
    n: options.
    stops: False: it never ends thinking by itself, so that every trace has as
      many episodes as the budget allows.
  """
  return _search(n, stops, lambda left: left | ~left.any(-1, keepdims=True))


def uniform_policy(n: int, *, stops: bool = True) -> Model:
  """Returns the policy that tries uniformly with replacement; params None.

  It ends thinking when it knows the answer and answers as the optimal policy
  does: they differ in what they try alone.

  Args:
    n, stops: as in `optimal_policy`.
  """
  return _search(n, stops, jnp.ones_like)


def _search(n, stops, propose) -> Model:
  check_n(n)
  apply_fn = functools.partial(_search_logits, n=n, stops=stops, tries=propose)
  return from_apply_fn(lambda params, *args: (apply_fn(*args), None))


def _search_logits(tokens, positions, cache, mask, *, n, stops, tries):
  """Returns logits f32[B,L,V], 0 on what is allowed next, at every token.

  In, n = 3:     <think>  1      no     0      yes      </think>  0
  Next:          0|1|2    (env)  0|2    (env)  </think>  0        <eos>

  Args:
    tokens: i32[B,L].
    positions, cache: not used.
    mask: bool[B,L,L], what each token sees.
    n, stops: as in `optimal_policy`.
    tries: `left bool[...,n] -> bool[...,n]`, the options to try next.
  """
  del positions, cache
  option = tokens - tokenizer.FIRST_INTEGER
  options = jnp.arange(n)
  # A verdict belongs to the option in the slot before it.
  judged = jnp.pad(option, ((0, 0), (1, 0)))[:, :-1, None] == options
  yes, no = tokens == tokenizer.YES, tokens == tokenizer.NO
  seen = lambda x: jnp.einsum('bql,bln->bqn', mask * 1.0, x * 1.0) > 0
  found = seen(judged & yes[..., None])
  left = ~seen(judged & (yes | no)[..., None])
  known = found.any(-1, keepdims=True)
  guess = jnp.where(known, found, left)
  certain = guess.sum(-1) == 1

  answering = seen((tokens == tokenizer.END_THINK)[..., None])[..., 0]
  is_option = (option >= 0) & (option < n)
  stop = ~answering & ~is_option & certain & stops
  pick = jnp.where(answering[..., None], guess, tries(left))
  pick &= ~(is_option | stop)[..., None]

  batch, length = tokens.shape
  allowed = jnp.zeros((batch, length, tokenizer.VOCAB_SIZE), bool)
  allowed = allowed.at[..., tokenizer.integer(0) + options].set(pick)
  allowed = allowed.at[..., tokenizer.END_THINK].set(stop)
  allowed = allowed.at[..., tokenizer.EOS].set(is_option & answering)
  verdicts = jnp.asarray([tokenizer.YES, tokenizer.NO])
  waiting = (is_option & ~answering)[..., None]
  allowed = allowed.at[..., verdicts].set(waiting)
  return jnp.where(allowed, 0.0, IMPOSSIBLE)
