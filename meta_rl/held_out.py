"""Measuring a policy on held-out problems: traces, and J along each of them.

Training logs a summary of it, `meta_rl.evaluation` makes figures of it. Every
trace is sampled once at the full thinking budget, and J is measured by forced
termination at each of its episode boundaries and at fixed token budgets.

Axes: N traces, T tokens, K episodes.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from meta_rl import (
  batchwise,
  checks,
  setup_run,
  setup_steps,
  sharding,
  statistics,
)
from meta_rl.compiled import CountedJit

BUDGET_POINTS = 4  # of the forced termination at fixed token budgets


# What there is of each row, always and where it is asked for.
_ALWAYS = (
  'tokens token_mask mask thinking_mask forced truncated rewards success ends '
  'count stop_index problem'
)
_AT_BUDGETS = 'budget_success budget_ends budget_tokens'
_ANSWERS = (
  'answers answer_mask answer_log_probs answer_rewards answer_ends answer_count'
)


def problem_batches(
  source,
  *,
  record_arrays: Callable,
  num_problems: int,
  batch_size: int,
  repeats: int = 1,
) -> list[dict[str, np.ndarray]]:
  """Returns the first problems of a split in batches of one shape.

  The last batch is filled up with the first problems again; `measure` drops
  these rows.

  Args:
    source: records of `TaskKit.load_source`.
    record_arrays: the arrays of one record, of the task's `TaskKit`.
    num_problems: how many; more than there are raises ValueError.
    batch_size: rows of each batch.
    repeats: rows of each problem, one after the other, for pass@k.
  """
  checks.check_count('batch_size', batch_size)
  checks.check_count('repeats', repeats)
  if not 1 <= num_problems <= len(source):
    raise ValueError(
      f'num_problems={num_problems}: the split holds {len(source)} problems; '
      f'give 1..{len(source)}.'
    )
  records = [record_arrays(source[i]) for i in range(num_problems)]
  rows = [i for i in range(num_problems) for _ in range(repeats)]
  filler = -len(rows) % batch_size
  weights_ = [1] * len(rows) + [0] * filler
  rows += [rows[i % len(rows)] for i in range(filler)]
  batches = []
  for start in range(0, len(rows), batch_size):
    part = slice(start, start + batch_size)
    batch = stack([records[i] for i in rows[part]])
    batch['problem'] = np.asarray(rows[part], np.int32)
    batch['counts'] = np.asarray(weights_[part], bool)
    batches.append(batch)
  return batches


def validation_batches(config, *, mesh=None) -> list[dict[str, np.ndarray]]:
  """Returns the problems that a run measures itself on, in batches.

  Args:
    config: of a run.
    mesh: over which each batch is spread: its size is raised to a multiple of
      the data shards.

  Raises:
    ValueError: more of them than there are.
  """
  source = setup_run.load_problems(config, 'validation')
  if config.eval.num_problems > len(source):
    raise ValueError(
      f'eval.num_problems={config.eval.num_problems} is given; the validation '
      f'split holds {len(source)}: ask for no more, or bring more problems.'
    )
  return problem_batches(
    source,
    record_arrays=setup_run.task_kit(config).record_arrays,
    num_problems=config.eval.num_problems,
    batch_size=_round_up(config.eval.batch_size, mesh),
  )


def _round_up(rows, mesh):
  return rows if mesh is None else rows + -rows % sharding.data_shards(mesh)


def stack(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns one batch out of equal-shaped records."""
  return {k: np.stack([r[k] for r in records]) for k in records[0]}


def make_calls(
  config,
  model,
  task,
  *,
  factor: int | None = None,
  budgets: Sequence[int] | None = None,
  votes: int = 0,
  mesh=None,
) -> dict[str, CountedJit]:
  """Returns the jitted generate and prove for one trace a problem.

  J is by `setup_steps.measuring_prover`, whatever trains, and measured at
  episode boundaries (`prove`) and at fixed token budgets (`prove_budgets`).
  `prove_other` measures by the other of the two kinds at the same boundaries,
  for who wants to know how far they differ; `grade` grades and leaves J at 0;
  `votes`, made where they are asked for, samples answers there.

  Args:
    config: an RL config.
    model, task: the network and the task.
    factor: traces are kept thinking for so many times the thinking budget
      (budget forcing), with so many times the episodes; None: they stop where
      the policy stops, or at the budget.
    budgets: tokens at which `prove_budgets` measures; None: BUDGET_POINTS equal
      shares of the budget.
    votes: answers at each boundary that vote, of `votes`; 0: none.
    mesh: of devices that each take their rows of a batch (`prove_other`,
      `grade` and `votes` do not); None: one device.
  """
  kind = setup_steps.measuring_prover(config)
  own = setup_steps.measuring_config(config, task)
  own.rollout.thinking_budget *= factor or 1
  own.prover.max_episodes *= factor or 1
  budget = own.rollout.thinking_budget
  points = budgets or (
    round(budget * (i + 1) / BUDGET_POINTS) for i in range(BUDGET_POINTS)
  )
  other = own.copy_and_resolve_references()
  other.prover.kind = 'sampled' if kind == 'exact' else 'exact'
  unmeasured = own.copy_and_resolve_references()
  unmeasured.prover.update({'kind': 'none', 'boundaries': 'delimiters'})
  at_budgets = own.copy_and_resolve_references()
  at_budgets.prover.update({'boundaries': 'budgets', 'budgets': tuple(points)})
  make = functools.partial(setup_steps.make_calls, group_size=1)
  generate, prove = make(own, model, task, min_thinking=factor and budget)
  _, prove_other = make(other, model, task)
  _, grade = make(unmeasured, model, task)
  _, prove_budgets = make(at_budgets, model, task)
  if mesh is not None:
    generate, prove, prove_budgets = _spread(
      mesh, generate, prove, prove_budgets
    )
  calls = {
    'generate': generate,
    'prove': prove,
    'prove_budgets': prove_budgets,
    'prove_other': prove_other,
    'grade': grade,
  }
  if votes:
    calls['votes'] = setup_steps.make_answers(own, model, task, votes)
  return {name: CountedJit(call) for name, call in calls.items()}


def _spread(mesh, generate, prove, prove_budgets):
  """Returns the calls with rows spread over a mesh, weights gathered once."""

  def own_generate(params, batch, key, offset):
    offset += sharding.first_row(mesh, batch)
    return generate(params, batch, key, offset)

  def own_rows(prove):
    def own_prove(params, batch, traces, cache, key, offset):
      offset += sharding.first_row(mesh, batch)
      return prove(params, batch, traces, cache, key, offset)

    return rows(mesh, own_prove, 'wrrcww')

  rows = sharding.rows_call
  return (
    rows(mesh, own_generate, 'wrww', gives_cache=True),
    own_rows(prove),
    own_rows(prove_budgets),
  )


def measure(
  calls,
  params,
  batches: Sequence[dict],
  key,
  *,
  at_budgets: bool = False,
  grade_only: bool = False,
  base_params=None,
  other_key=None,
  votes_key=None,
  mesh=None,
  kept: batchwise.Kept | None = None,
  on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Returns what was measured on every trace, numpy, N rows (host).

  Row i draws from fold_in(key, i): two policies evaluated with one key share
  their random numbers, and the paired differences are the narrower for it.

  Args:
    calls: of `make_calls`.
    params: the policy, its own prover.
    batches: of `problem_batches`.
    key: PRNG key.
    at_budgets: also J at fixed token budgets.
    grade_only: rewards alone, for who needs no J: success is 0 throughout.
      Not with at_budgets, base_params, other_key or a mesh.
    base_params: of a second, frozen prover that answers from the same traces.
    other_key: PRNG key of the other kind of prover, at the same boundaries;
      None: it is not asked.
    votes_key: PRNG key of the answers that `make_calls` was given a number of;
      None: none are sampled.
    mesh: that the calls were made with.
    kept, on_batch: as in `batchwise.in_batches`.

  Returns:
    tokens i32[N,T], mask, thinking_mask bool[N,T], rewards f32[N], success
    f32[N,K+1], ends i32[N,K+1], count i32[N], forced, truncated bool[N],
    problem i32[N]; with at_budgets also budget_success f32[N,S+1], budget_ends
    i32[N,S+1] and budget_tokens i32[N], fed for these; with base_params
    base_success f32[N,K+1]; with other_key other_success f32[N,K+1]; with
    votes_key what `steps.make_answers` gives.
  """
  if grade_only and (
    at_budgets or mesh or base_params is not None or other_key is not None
  ):
    raise ValueError(
      'grade_only measures no J: leave at_budgets, base_params, other_key and '
      'mesh out.'
    )
  names = _ALWAYS.split()
  names += _AT_BUDGETS.split() if at_budgets else []
  names += [] if base_params is None else ['base_success']
  names += [] if other_key is None else ['other_success']
  names += [] if votes_key is None else _ANSWERS.split()
  return batchwise.in_batches(
    lambda batch, offset: _measure_batch(
      calls,
      params,
      batch,
      key,
      offset,
      at_budgets=at_budgets,
      grade_only=grade_only,
      base_params=base_params,
      other_key=other_key,
      votes_key=votes_key,
      mesh=mesh,
    ),
    batches,
    names=set(names),
    kept=kept,
    on_batch=on_batch,
  )


def _measure_batch(
  calls,
  params,
  batch,
  key,
  offset,
  *,
  at_budgets,
  grade_only,
  base_params,
  other_key,
  votes_key,
  mesh,
):
  """Returns what `measure` does of one batch, on the host, no filler in it."""
  arrays = {k: v for k, v in batch.items() if k not in ('problem', 'counts')}
  if mesh is not None:
    own = sharding.process_slice(len(batch['problem']), mesh)
    arrays = sharding.global_batch(mesh, {k: v[own] for k, v in arrays.items()})
  traces, cache = calls['generate'](params, arrays, key, offset)
  given = arrays, traces, cache
  own_key, budget_key = jax.random.split(jax.random.fold_in(key, 1))
  prove = calls['grade' if grade_only else 'prove']
  found = prove(params, *given, own_key, offset)
  part = {
    'tokens': traces.tokens,
    'token_mask': traces.token_mask,
    'mask': traces.mask,
    'thinking_mask': traces.thinking_mask,
    'forced': traces.forced,
    'truncated': traces.truncated,
    'rewards': found.rewards,
    'success': found.success,
    'ends': found.episodes.ends,
    'count': found.episodes.count,
    'stop_index': found.stop_index,
  }
  if at_budgets:
    cut = calls['prove_budgets'](params, *given, budget_key, offset)
    part |= {
      'budget_success': cut.success,
      'budget_ends': cut.episodes.ends,
      'budget_tokens': cut.prover_tokens,
    }
  if base_params is not None:
    # The cache holds the policy's own keys and values. Of provers that sample
    # both draw by one key: their difference is the narrower for it.
    frozen = calls['prove'](base_params, arrays, traces, None, own_key, offset)
    part['base_success'] = frozen.success
  if other_key is not None:
    other = calls['prove_other'](params, *given, other_key, offset)
    part['other_success'] = other.success
  if votes_key is not None:
    part |= calls['votes'](params, *given, votes_key, offset)
  part = sharding.gather_to_host(part) | {'problem': batch['problem']}
  return {k: v[batch['counts']] for k, v in part.items()}


def regrets(measured: dict[str, np.ndarray], horizon: int) -> np.ndarray:
  """Returns f64[N], each trace's token-weighted regret against 1."""
  return statistics.regret_at_budgets(
    measured['success'],
    measured['ends'],
    measured['count'],
    budgets=[horizon],
    horizon=horizon,
  )[:, 0]


def final_success(measured: dict[str, np.ndarray]) -> np.ndarray:
  """Returns f32[N], J at each trace's own stop."""
  rows = np.arange(len(measured['count']))
  return measured['success'][rows, measured['count']]


def budget_success(measured: dict[str, np.ndarray]) -> list[float]:
  """Returns J at each of the S budgets of `make_calls`, mean over traces."""
  return measured['budget_success'][:, 1:].mean(0, np.float64).tolist()


def budget_cost(measured: dict[str, np.ndarray]) -> float:
  """Returns the forward tokens that `budget_success` took: traces and probes.

  Every trace is of a prompt of its own (meta_rl/costs.py).
  """
  return float(measured['token_mask'].sum() + measured['budget_tokens'].sum())


def summary(measured: dict[str, np.ndarray], horizon: int) -> dict[str, float]:
  """Returns the scalars that training logs at a held-out evaluation."""
  return {
    'eval/accuracy': float(final_success(measured).mean()),
    'eval/reward_mean': float(measured['rewards'].mean()),
    'eval/regret_token_weighted': float(regrets(measured, horizon).mean()),
    'eval/tokens_mean': float(measured['thinking_mask'].sum(1).mean()),
  }


def episode_shares(measured: dict[str, np.ndarray], config) -> dict[str, float]:
  """Returns which shares of the episodes are well-formed, and true.

  What each episode claims is checked by the task. One that the budget cut off
  claims nothing yet and is left out, unless it is longer than an episode can
  be. Nothing is returned for a task without a check, nor without an episode.

  Args:
    measured: of `measure`.
    config: whose task it was measured on.
  """
  kit = setup_run.task_kit(config)
  if kit.check_trace is None:
    return {}
  task, options = setup_run.make_task(config), setup_run.task_options(config)
  found = []
  for i, tokens in enumerate(measured['tokens']):
    real = tokens[measured['token_mask'][i]].tolist()
    checked = kit.check_trace(real, **options)
    thought = tokens[measured['thinking_mask'][i]]
    ends = np.flatnonzero(np.isin(thought, task.delimiter_ids))
    left = len(thought) - 1 - (ends[-1] if len(ends) else -1)
    if measured['forced'][i] and 0 < left < task.episode_length:
      checked = checked[:-1]
    found += [(episode.well_formed, episode.valid) for episode in checked]
  if not found:
    return {}
  well_formed, true = np.mean(found, 0).tolist()
  return {
    'eval/episodes_well_formed': well_formed,
    'eval/episodes_true': true,
  }
