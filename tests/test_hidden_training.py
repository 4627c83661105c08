"""Training on Hidden finds the optimum that is known.

The step of `meta_rl.train`, its jitted calls and MRT's credit as they ship, on
a policy of n² + 2 numbers instead of a network: it learns in seconds, and the
optimum is in its reach.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from meta_rl import metrics, setup_run, tokenizer, train, train_calls, update
from meta_rl.models import from_apply_fn
from meta_rl.tasks import hidden, hidden_data

pytestmark = pytest.mark.full

N, K = 4, 4
BUDGET = 2 * K
TASK = hidden.hidden_task(n=N)
BEST = hidden.area(hidden.optimal_success(N, K), horizon=BUDGET)


def make_policy():
  """A policy that may learn what to try after what, and when to stop.

  Before an episode option i has the logit Σ_{j tried} W_ij, and stopping has
  one logit while nothing was found and another afterwards. It answers as the
  optimal policy does. At W = 0 it tries uniformly, with repeats; W = -∞ on the
  diagonal and never stopping before a yes is the optimum.
  """
  program = hidden.uniform_policy(N, stops=False)

  def apply_fn(params, tokens, positions, cache, mask):
    logits, _ = program.apply_fn(None, tokens, positions, cache, mask)
    options = tokenizer.FIRST_INTEGER + jnp.arange(N)
    seen = lambda x: jnp.einsum('bql,bln->bqn', mask * 1.0, x * 1.0) > 0
    tried = seen(tokens[..., None] == options)
    found = seen((tokens == tokenizer.YES)[..., None])[..., 0]
    answering = seen((tokens == tokenizer.END_THINK)[..., None])[..., 0]
    waiting = (tokens[..., None] == options).any(-1)  # for a verdict
    thinks = ~answering & ~waiting
    own = jnp.where(thinks[..., None], tried @ params['tries'].T, 0.0)
    stop = jnp.where(found, params['stop'][1], params['stop'][0])
    stop = jnp.where(thinks, stop, logits[..., tokenizer.END_THINK])
    return (
      logits.at[..., options].add(own).at[..., tokenizer.END_THINK].set(stop)
    ), None

  return from_apply_fn(apply_fn)


def problems(rows):
  """Problems that hide each option equally often."""
  arrays = [
    hidden_data.record_arrays({'n': N, 'hidden': i % N}) for i in range(rows)
  ]
  return {k: np.stack([a[k] for a in arrays]) for k in arrays[0]}


@pytest.mark.parametrize('outcome_mass', [0.0, 0.3])
def test_training_finds_the_optimum(outcome_mass):
  config = small_runs.make_config(
    'mrt_hidden',
    total_steps=60,
    task__n=N,
    rollout__thinking_budget=BUDGET,
    rollout__num_prompts=16,
    rollout__group_size=8,
    prover__max_episodes=K,
    algorithm__outcome_mass=outcome_mass,
    optimizer__learning_rate=0.2,
  )
  optimizer = setup_run.make_optimizer(config)
  parallel = train_calls.make_parallel(config, make_policy(), TASK, optimizer)
  summarize = train_calls.make_summarize(config, TASK)
  # It stops in one case of five, wherever it may.
  params = {'tries': jnp.zeros((N, N)), 'stop': jnp.zeros(2)}
  state = update.init_state(params, optimizer, 0)

  def areas(params):
    """Area under J of 4,096 traces; one that stopped holds its J."""
    batch, keys = problems(512), jax.random.split(jax.random.key(1))
    traces, cache = parallel.generate(params, batch, keys[0])
    found = parallel.prove(params, batch, traces, cache, keys[1])
    success = np.asarray(found.success, np.float64)
    return success[:, np.arange(BUDGET) // 2].mean(1)

  before = areas(state.params).mean()
  batch, timer = problems(16), metrics.Timer()
  for _ in range(config.total_steps):
    state, _, _ = train.rl_step(
      parallel, summarize, state, None, batch, None, timer
    )
  after = areas(state.params)
  error = after.std() / np.sqrt(len(after))
  # .759 of the optimum's area before; .997 is what was found.
  assert before < 0.8 * BEST
  assert after.mean() > 0.95 * BEST
  # Regret against J* goes to zero, and no policy's is below it.
  assert -4 * error < BEST - after.mean() < 0.01
