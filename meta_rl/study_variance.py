"""The variance of the gradient at one dose, in a process of its own.

    python -m meta_rl.study_variance SPEC.json RUN_FOLDER OUT.json

`meta_rl.study --variance` starts it. On the policy that training starts from,
batches of traces are sampled once, and the prover is drawn again and again on
each: 1, 2, 4 ... branches (the smaller numbers are the first of the largest
one's) and the exact prover. OUT.json holds the split of each
(meta_rl/gradient_variance.py) and the cost of a batch (meta_rl/costs.py).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

from meta_rl import env

if __name__ == '__main__':
  env.check_versions()  # before jax is imported

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import (
  costs,
  data,
  gradient_variance,
  probes,
  prover,
  setup_run,
  setup_steps,
  signals,
  steps,
  study_cell,
  study_cells,
  train_calls,
  update,
)
from meta_rl.files import atomic_write


def run(spec: Mapping, folder: str, out: str) -> int:
  """Measures one dose; returns the exit code.

  Args:
    spec: of `study_cells.make_variance_specs`.
    folder: not used; every job of a study has one.
    out: the JSON to write.
  """
  del folder
  try:
    config = study_cells.to_config(spec)
    result = measure(config, **spec['variance'])
    # With its settings: they are compared before it is taken for done.
    result = {k: spec[k] for k in ('dose', 'variance', 'config')} | result
    text = json.dumps(result, allow_nan=False) + '\n'
    atomic_write(out, text.encode())
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return signals.EXIT_ERROR
  return signals.EXIT_OK


def measure(
  config, *, branches: Sequence[int], batches: int, draws: int
) -> dict:
  """Returns the variance of the gradient of a config's first step.

  Args:
    config: an RL config whose algorithm uses J.
    branches: numbers of sampled branches, each >= 1.
    batches: batches of traces, >= 2.
    draws: of the sampled prover on each batch, >= 2.

  Returns:
    'batches', 'draws', 'traces' (a batch), 'machine', and 'rows': for each
    number of branches and the exact prover 'prover', 'branches' (None for
    exact), 'between', 'within', 'total', 'mean_norm' and 'cost' of a batch.
  """
  if not branches or min(branches) < 1 or len(set(branches)) < len(branches):
    raise ValueError(
      f'variance.branches={tuple(branches)} is given; allowed are different '
      'numbers >= 1.'
    )
  if config.algorithm.name in ('brpo', 'prefix'):
    raise ValueError(
      f'algorithm.name={config.algorithm.name!r}: it trains on more than the '
      "traces of which the variance is measured; name a method of 'mrt'."
    )
  if config.loss.kl_coef:
    raise ValueError(
      f'loss.kl_coef={config.loss.kl_coef}: the variance is measured on the '
      'policy that is its own reference; set it to 0.'
    )
  if setup_steps.pathwise_of(config):
    raise ValueError(
      'loss.pathwise is on: the variance is measured of the policy gradient '
      "alone; set loss.pathwise.boundaries='none'."
    )
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  params = setup_run.initial_params(config)
  exact = config.copy_and_resolve_references()
  exact.unlock()
  exact.prover.kind = 'exact'
  generate, prove = map(jax.jit, setup_steps.make_calls(exact, model, task))
  draw = jax.jit(make_draw(config, model, task, max(branches)))
  gradient = jax.jit(make_gradient(config, model, task))
  problems = data.problem_iterator(
    setup_run.load_problems(config, 'train'),
    record_arrays=setup_run.task_kit(config).record_arrays,
    batch_size=config.rollout.num_prompts,
    seed=config.seed,
  )
  spent = {}

  def sample(n, key):
    del n
    batch = jax.tree.map(jnp.asarray, next(problems))
    traces, cache = generate(params, batch, key)
    return batch, traces, cache, prove(params, batch, traces, cache, key)

  def keep_cost(name, traces, measured):
    cost = costs.step_costs(
      traces.token_mask,
      measured.episodes.ends[:, 0],
      measured.prover_tokens,
      group_size=config.rollout.group_size,
      epochs=config.batching.epochs,
    )
    spent.setdefault(name, []).append(float(sum(cost.values())))

  def draws_of(sampled, key):
    batch, traces, cache, measured = sampled
    rewards, mask = draw(params, batch, traces, cache, measured, key)
    found = {}
    for m in branches:
      name = f'{m} branch' + 'es' * (m > 1)
      found[name] = with_branches(measured, rewards, mask, m, task)
      keep_cost(name, traces, found[name])
    return found

  def exact_of(sampled):
    keep_cost('exact', sampled[1], sampled[3])
    return {'exact': sampled[3]}

  splits = gradient_variance.measure(
    sample,
    draws_of,
    exact_of,
    lambda sampled, measured: gradient(params, sampled[1], measured),
    batches=batches,
    draws=draws,
    key=jax.random.key(config.seed),
  )
  numbers = dict(zip(splits, [*branches, None]))
  return {
    'batches': batches,
    'draws': draws,
    'traces': config.rollout.num_prompts * config.rollout.group_size,
    'machine': env.machine_description(),
    'rows': [
      {
        'prover': name,
        'branches': numbers[name],
        **split._asdict(),
        'cost': float(np.mean(spent[name])),
      }
      for name, split in splits.items()
    ],
  }


def make_draw(config, model, task, num_branches: int):
  """Returns `(params, batch, traces, cache, measured, key) -> rewards, mask`.

  Rewards f32[B,K+1,M] of each branch's answer, and which tokens it drew.
  """

  def draw(params, batch, traces, cache, measured, key):
    rows = steps.per_trace(batch, config.rollout.group_size)
    answers, mask = prover.sample_answers(
      model,
      params,
      traces.tokens,
      traces.token_mask,
      measured.episodes.ends,
      key,
      num_branches=num_branches,
      max_answer_len=task.answer_length,
      stop_ids=task.stop_ids,
      eos_id=task.eos_id,
      stop_table=task.stop_table,
      temperature=config.rollout.temperature,
      cache=cache,
    )
    per_branch = {k: x[:, None, None] for k, x in rows.items()}
    return task.verify(answers, mask, per_branch), mask

  return draw


def with_branches(measured, rewards, mask, branches: int, task):
  """Returns what was measured, J from the first `branches` answers."""
  success = rewards[:, :, :branches].astype(jnp.float32).mean(-1)
  return dataclasses.replace(
    measured,
    success=probes.repeat_past_count(success, measured.episodes.ends),
    prover_tokens=costs.sampled_tokens(
      mask[:, :, :branches], len(task.stop_ids)
    ),
  )


def make_gradient(config, model, task):
  """Returns `(params, traces, measured) -> gradient` of one whole rollout."""
  batching = config.batching
  loss_fn = train_calls.make_loss(config, model, task)
  advantage_fn = setup_steps.make_advantages(config)

  def gradient(params, traces, measured):
    batch = steps.training_batch(traces, measured, advantage_fn)
    found, _, _ = update.gradients(
      loss_fn,
      params,
      batch,
      micro_batches=batching.mini_batches * batching.micro_batches,
      length_buckets=batching.length_buckets,
    )
    return found

  return gradient


if __name__ == '__main__':
  sys.exit(study_cell.main(run=run))
