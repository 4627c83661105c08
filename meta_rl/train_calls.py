"""The jitted calls of a training step, built from a config.

`meta_rl.train` runs them, `benchmarks/step.py` times them. Each is traced once
a shape; `count_traces` counts it.
"""

import dataclasses

import jax.numpy as jnp

from meta_rl import (
  costs,
  dynamic_sampling,
  setup_devices,
  setup_own,
  setup_run,
  setup_steps,
  sharding,
  steps,
)
from meta_rl.compiled import CountedJit


def make_parallel(
  config, model, task, optimizer, *, mesh=None
) -> sharding.Parallel:
  """Returns the jitted calls of a training step of a config.

  Args:
    config: an RL config.
    model, task, optimizer: its own.
    mesh: for kind 'jit', in place of what `config.parallel` asks for.
  """
  rollout = config.rollout
  generate, prove = setup_own.make_training_calls(config, model, task)
  given = setup_own.rollouts_path(config) is not None
  score = None
  if config.loss.kl_coef or given:
    score = steps.make_score(
      model, temperature=rollout.temperature, chunk=config.loss.chunk
    )
  value = None
  if config.algorithm.name == 'ppo':
    value = steps.make_value(model)
  loss_fn = make_loss(config, model, task)

  def make_update(axis_name, spread):
    return steps.make_update(
      spread(loss_fn),
      optimizer,
      setup_steps.make_advantages(config, axis_name=axis_name),
      rows_fn=setup_steps.make_rows(config, task),
      prepare=setup_steps.make_prepare(config, task),
      axis_name=axis_name,
      trainable=setup_run.trainable(config),
      **setup_devices.batching_of(config, mesh),
    )

  kind = 'jit'
  if mesh is None:
    kind, mesh = setup_devices.parallel_of(config)
  return sharding.parallelize(
    kind,
    generate=generate,
    prove=prove,
    score=score,
    value=value,
    make_update=make_update,
    rows_per_prompt=rollout.group_size,
    mini_batches=config.batching.mini_batches,
    mesh=mesh,
  )


def param_mesh(parallel):
  """Returns the mesh that parameters are spread over, None where they are not.

  Under 'pmap' each device holds all of them.
  """
  return parallel.mesh if parallel.kind == 'jit' else None


def make_loss(config, model, task):
  """Returns the loss of a config, every term that it asks for included."""
  rollout, loss = config.rollout, config.loss.to_dict()
  constant = None
  if loss['aggregate'] == 'constant':
    constant = rollout.thinking_budget + len(task.stop_ids) + task.answer_length
  value_term = None
  if config.algorithm.name == 'ppo':
    value_term = steps.make_value_term(
      aggregate=loss['aggregate'], constant=constant, **config.critic.to_dict()
    )
  loss.pop('pathwise', None)  # whose term is made with the task
  return steps.make_loss(
    model,
    temperature=rollout.temperature,
    constant=constant,
    value_term=value_term,
    pathwise_term=setup_steps.make_pathwise_term(
      config, model, task, constant=constant
    ),
    **loss,
  )


def with_reference(parallel, reference) -> sharding.Parallel:
  """Returns the calls with a `generate` that is given the reference, too.

  It is what the run starts from, so that a resumed run has the same one.
  """

  def generate(params, batch, key):
    return parallel.generate((params, reference), batch, key)

  return dataclasses.replace(parallel, generate=generate)


def make_summarize(config, task) -> CountedJit:
  """Returns the jitted scalars of a batch of traces, and what they cost."""
  group_size = config.rollout.group_size
  rows = setup_steps.make_rows(config, task)
  differentiated = setup_steps.make_differentiated(config, task)
  trained = setup_steps.make_trained(config)
  given = setup_own.rollouts_path(config) is not None
  reads_success = setup_steps.reads_success(config)

  def summarize(traces, measured):
    row = steps.rollout_metrics(
      traces,
      measured,
      group_size=group_size,
      horizon=config.rollout.thinking_budget,
      # Values of thinking on are no J: they say nothing about regret.
      has_success=config.prover.kind not in ('none', 'continued'),
    )
    cost = costs.step_costs(
      traces.token_mask,
      measured.episodes.ends[:, 0],
      measured.prover_tokens if reads_success else None,
      rows(traces, measured)['token_mask'].sum() if rows else 0,
      group_size=group_size,
      epochs=config.batching.epochs,
      scorings=bool(config.loss.kl_coef)
      + (config.algorithm.name == 'ppo')
      + given,
      differentiated=differentiated(measured) if differentiated else None,
      side_tokens=traces.side_tokens,
      trained=trained(traces, measured) if trained else None,
    )
    if given:  # by another engine, whose cost is not known here
      cost['cost/generate'] = jnp.zeros(())
    if given and reads_success:  # no cache came with them: they are fed first
      cost['cost/prove'] += traces.token_mask.sum()
    return row | cost

  return CountedJit(summarize)


def make_resample(config, parallel, next_batch):
  """Returns what samples further prompts within a step, None if it is off.

  Args:
    config: an RL config.
    parallel: of `make_parallel`.
    next_batch: `() -> batch`, the next problems, placed.
  """
  max_rounds = config.rollout.dynamic_sampling.max_rounds
  if not max_rounds:
    return None
  return dynamic_sampling.Resampler(
    max_rounds=max_rounds,
    group_size=config.rollout.group_size,
    next_batch=next_batch,
    get=parallel.get,
    mesh=parallel.mesh,
  )


def count_traces(calls, eval_calls, resample=None, correct=None) -> int:
  """Returns how often the run's jitted calls were traced, evaluation's too.

  Args:
    calls: (parallel, summarize, block) of each thinking budget.
    eval_calls: of `held_out.make_calls`.
    resample: of `make_resample`.
    correct: of `setup_own.make_correct`.
  """
  counted = list(eval_calls.values())
  if resample is not None:
    counted.append(resample.merge)
  if correct is not None:
    counted.append(correct)
  total = sum(call.traces for call in counted)
  for parallel, summarize, block in calls:
    total += sum(parallel.traces.values()) + summarize.traces
    total += 0 if block is None else block.traces
  return total
