"""What an evaluation measures on held-out problems, and its figures.

`meta_rl.evaluate` is the command, `meta_rl.held_out` runs the model.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from meta_rl import (
  checks,
  env,
  eval_figures,
  held_out,
  setup_run,
  setup_steps,
  statistics,
  waste,
)
from meta_rl.answers import maj_at_k, pass_at_k


@dataclasses.dataclass(frozen=True)
class Problems:
  """The first problems of a split, measured in batches of one shape.

  Attributes:
    source: records of `TaskKit.load_source`.
    kit: of the task.
    number: N, how many.
    batch_size: traces at a time, or as many as there are.
  """

  source: Sequence
  kit: setup_run.TaskKit
  number: int
  batch_size: int

  def first(self, number: int) -> 'Problems':
    """Returns the first of them, all if there are fewer."""
    return dataclasses.replace(self, number=min(number, self.number))

  def batches(self, repeats: int = 1) -> list[dict[str, np.ndarray]]:
    """Returns `held_out.problem_batches` with so many rows a problem."""
    return held_out.problem_batches(
      self.source,
      record_arrays=self.kit.record_arrays,
      num_problems=self.number,
      batch_size=min(self.batch_size, max(1, self.number * repeats)),
      repeats=repeats,
    )

  def measure(self, calls, params, key, *, repeats: int = 1, **options) -> dict:
    """Returns `held_out.measure` of them."""
    return held_out.measure(
      calls, params, self.batches(repeats), key, **options
    )

  @functools.cached_property
  def clusters(self) -> np.ndarray:
    """i[N], one id for all prompts of one and the same problem (a hash).

    Equal ids in two evaluations mean equal problems: the report pairs
    evaluations by them.
    """
    keys = (self.kit.cluster_key(self.source[i]) for i in range(self.number))
    return np.asarray([zlib.crc32(key.encode()) for key in keys])


def evaluate(
  config,
  params,
  *,
  name: str,
  algorithm: str,
  num_problems: int = 2048,
  batch_size: int = 256,
  samples: int = 8,
  sample_problems: int = 128,
  seed: int = 1,
  extrapolate: Sequence[int] = (),
  extrapolate_problems: int = 256,
  base_params=None,
  compare_provers: int = 0,
  progress: Callable[[str, int, int], None] | None = None,
) -> dict:
  """Returns the content of `eval.json` for one policy on the test split.

  Beside the headline figures it holds

    stopping       chances and stops at each boundary, where the trace holds a
                   success (J above 0.5) and where it does not
                   (`eval_figures.stop_rates`)
    extrapolation  accuracy and regret at 1x and the factors of the thinking
                   budget, thinking kept going by budget forcing
                   (`eval_figures.extrapolation`); with `extrapolate` alone
    waste          what the thinking tokens went into, and how often
                   (`waste.summary`)
    base_prover    accuracy and regret of the same traces when the frozen base
                   policy answers (`eval_figures.base_prover`); with
                   `base_params` alone
    prover         which prover measured J here and which one trains, and how
                   far exact and sampled J differ (`eval_figures.prover_gap`),
                   under 'gap'; that with `compare_provers` alone
    traces         some as text (`waste.chosen`), each with its 'classes'

  Args:
    config: an RL config: task, model, thinking budget, temperature.
    params: the policy.
    name, algorithm: for the report.
    num_problems: held-out problems, one trace each.
    batch_size: traces at a time.
    samples, sample_problems: traces a problem, and problems, of pass@k and
      maj@k.
    seed: of the sampling; the same for policies that are to be compared.
    extrapolate: multiples > 1 of the thinking budget, such as (2, 4).
    extrapolate_problems: how many of the problems these are measured on: traces
      of four times the length cost more than four times as much.
    base_params: of the policy that training started from.
    compare_provers: problems on which the exact prover is compared with one
      that samples `prover.num_branches` answers and asks the verifier; 0: none.
    progress: is told after each batch what is measured, how many traces of it
      are done, and of how many.
  """
  telling = lambda what: progress and functools.partial(progress, what)
  checks.check_count('compare_provers', compare_provers, low=0)
  check_factors(extrapolate, extrapolate_problems)
  kit = setup_run.task_kit(config)
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  if extrapolate:
    setup_run.check_context(config, task, times=max(extrapolate))
  calls = held_out.make_calls(config, model, task)
  source = setup_run.load_problems(config, 'test')
  problems = Problems(source, kit, num_problems, batch_size)
  key = jax.random.key(seed)
  horizon = config.rollout.thinking_budget
  found = problems.measure(
    calls,
    params,
    key,
    at_budgets=True,
    base_params=base_params,
    on_batch=telling('J along traces'),
  )
  clusters = problems.clusters
  grid = list(range(horizon + 1))  # J is a step function: every token
  curve_args = found['success'], found['ends'], found['count']
  curves = statistics.success_at_budgets(*curve_args, budgets=grid)
  mean, low, high = statistics.bootstrap_curve(curves, clusters=clusters)
  regret_curve = statistics.regret_at_budgets(
    *curve_args, budgets=grid, horizon=horizon
  )
  total = regret_curve[:, -1]
  tokens = found['thinking_mask'].sum(1)
  cut = found['budget_ends'] - found['budget_ends'][:, :1]
  shares = held_out.episode_shares(found, config)
  classes = waste.trace_classes(*curve_args, found['forced'], horizon=horizon)
  more = {}
  if extrapolate:
    longer = problems.first(extrapolate_problems)
    more['extrapolation'] = eval_figures.extrapolation(
      longer.measure(
        held_out.make_calls(config, model, task, factor=max(extrapolate)),
        params,
        key,
        on_batch=telling('longer traces'),
      ),
      horizon=horizon,
      factors=extrapolate,
      clusters=longer.clusters,
    )
  kind = setup_steps.measuring_prover(config)
  prover = {'kind': kind, 'training': config.prover.kind}
  if compare_provers or kind == 'sampled':
    prover['branches'] = config.prover.num_branches
  if compare_provers:
    prover['gap'] = compared(
      problems.first(compare_provers),
      calls,
      params,
      key,
      kind=kind,
      on_batch=telling('both provers'),
    )
  if base_params is not None:
    more['base_prover'] = eval_figures.base_prover(
      found['base_success'],
      found['ends'],
      found['count'],
      horizon=horizon,
      clusters=clusters,
      budgets=grid,
    )
  return {
    'name': name,
    'algorithm': algorithm,
    'num_problems': num_problems,
    'num_clusters': len(np.unique(clusters)),
    'horizon': horizon,
    'machine': env.machine_description(),
    'budgets': grid,
    'accuracy_at_budget': mean.tolist(),
    'tokens_at_budget': np.minimum(tokens[:, None], grid).mean(0).tolist(),
    'accuracy_low': low.tolist(),
    'accuracy_high': high.tolist(),
    'regret_at_budget': regret_curve.mean(0).tolist(),
    'forced_at_budget': {
      'budgets': cut.max(0).tolist(),
      'accuracy': found['budget_success'].mean(0).tolist(),
    },
    'scalars': {
      'accuracy': eval_figures.interval(
        held_out.final_success(found), clusters
      ),
      'reward': eval_figures.interval(found['rewards'], clusters),
      'regret_token_weighted': eval_figures.interval(total, clusters),
      'regret_normalized': eval_figures.normalized(curves, clusters),
      'tokens_to_accuracy': eval_figures.tokens_to_levels(grid, mean),
      'tokens_mean': float(tokens.mean()),
      'forced_rate': float(found['forced'].mean()),
      **{k.removeprefix('eval/'): share for k, share in shares.items()},
      **several_samples(
        problems.first(sample_problems),
        calls,
        params,
        jax.random.fold_in(key, 1),
        samples=samples,
        stop_length=len(task.stop_ids),
        on_batch=telling('pass@k'),
      ),
    },
    'per_problem': {
      'regret_token_weighted': total.tolist(),
      'accuracy': held_out.final_success(found).tolist(),
      'reward': found['rewards'].tolist(),
      'tokens': tokens.tolist(),
      'cluster': clusters.tolist(),
    },
    'stopping': eval_figures.stop_rates(
      found['success'], found['count'], found['forced']
    ),
    'waste': waste.summary(found, horizon=horizon, clusters=clusters),
    'prover': prover,
    **more,
    'traces': [
      held_out.describe(found, i, kit.decode) | {'classes': classes[i]}
      for i in waste.chosen(classes)
    ],
  }


def several_samples(
  problems: Problems,
  calls,
  params,
  key,
  *,
  samples: int,
  stop_length: int = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
  """Returns pass@k and maj@k over `samples` traces of each problem.

  A trace votes for what the kit's `vote` takes its answer to be; right answers
  are one and the same, and an answer that is none votes for none. It begins
  behind the marker, or behind all `stop_length` tokens that the budget forced.
  """
  found = problems.measure(
    calls,
    params,
    key,
    repeats=samples,
    grade_only=True,
    on_batch=on_batch,
  )
  shape = problems.number, samples
  right = found['rewards'].reshape(shape) >= 1
  votes = []
  for i, reward in enumerate(found['rewards']):
    more = stop_length - 1 if found['forced'][i] else 0
    columns = slice(int(found['stop_index'][i]) + 1 + more, None)
    answer = found['tokens'][i][columns][found['token_mask'][i][columns]]
    vote = problems.kit.vote
    votes.append('right' if reward >= 1 else vote(answer.tolist()))
  votes = np.asarray(votes, object).reshape(shape)
  sizes = [2**i for i in range(int(math.log2(samples)) + 1)]
  mean = lambda values: float(np.mean(list(values)))
  return {
    'pass@k': {
      str(k): mean(pass_at_k(samples, int(r.sum()), k) for r in right)
      for k in sizes
    },
    'maj@k': {
      str(k): mean(maj_at_k(list(v), k, 'right') for v in votes) for k in sizes
    },
  }


def compared(
  problems: Problems,
  calls,
  params,
  key,
  *,
  kind: str = 'exact',
  on_batch: Callable[[int, int], None] | None = None,
) -> dict:
  """Returns `eval_figures.prover_gap` of some problems.

  Args:
    problems: of which at least one lists an answer.
    calls, params, key: as in `held_out.measure`.
    kind: of the prover of `calls`.
    on_batch: as in `held_out.measure`.

  Raises:
    ValueError: none of them lists an answer, so that exact J is 0 throughout.
  """
  batches = problems.batches()
  if not any(batch['answer_mask'].any() for batch in batches):
    raise ValueError(
      f'compare_provers={problems.number}: none of these problems lists an '
      'accepted answer, so there is no exact prover to compare; give 0.'
    )
  # Answers of a key of their own; the traces are those of the headline.
  other_key = jax.random.fold_in(key, 2)
  found = held_out.measure(
    calls, params, batches, key, other_key=other_key, on_batch=on_batch
  )
  provers = found['success'], found['other_success']
  if kind == 'sampled':
    provers = provers[::-1]
  return eval_figures.prover_gap(
    *provers, found['count'], clusters=problems.clusters
  )


def check_factors(factors: Sequence[int], num_problems: int):
  """Raises ValueError unless the factors are integers above 1, of problems."""
  if not all(isinstance(f, int) and f > 1 for f in factors):
    raise ValueError(
      f'extrapolate={tuple(factors)} is given; allowed are integers above 1, '
      'multiples of the thinking budget.'
    )
  if factors and num_problems < 1:
    raise ValueError(
      f'extrapolate_problems={num_problems} is given; allowed is >= 1, or no '
      'extrapolate.'
    )
