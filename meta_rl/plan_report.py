"""A plan as text and as JSON: what a slice needs, and what to change."""

import dataclasses

from meta_rl.aot import roofline


def describe(plan, *, price: float | None = None) -> str:
  """Returns a plan as text.

  Args:
    plan: of `make_plan`.
    price: dollars a chip and hour; None: no dollars.
  """
  config, slice_ = plan.config, plan.slice_
  mesh = ', '.join(f'{k}={v}' for k, v in config.parallel.mesh.items())
  per = slice_.chip.devices
  lines = [
    f'{slice_.name}: {slice_.chips} chips, {slice_.devices} devices; '
    f'mesh {mesh}',
    f'{plan.parameters / 1e9:.2f}B parameters; {plan.rows} traces of '
    f'{plan.length:,} tokens, {config.batching.micro_batches} micro-batches of '
    f'{config.batching.mini_batches} mini-batches, '
    f'remat={config.model.get("remat")}',
    '',
    f'per chip of {slice_.chip.hbm / 1e9:.0f} GB    arguments  temporaries'
    '    peak     TFLOP      GB   compute   memory  network  exposed     time'
    '  bound',
  ]
  for name, each in plan.compiled.items():
    sizes = [
      f'{per * size / 1e9:9.2f}'
      for size in (each.arguments, each.temporaries, each.peak)
    ]
    line = f'{name:<20}' + '   '.join(sizes)
    if each.cost is not None:
      c = each.cost
      line += f'{per * c.flops / 1e12:10.1f}{per * c.bytes / 1e9:8.0f}'
      for seconds in (c.compute, c.memory, c.network, c.exposed, c.seconds):
        line += f'{seconds:8.2f}s'
      line += f'  {c.binds}'
    lines.append(line + (f'  {each.problem}' if each.problem else ''))
  lines += ['', *_collectives(plan), *_prediction(plan, price)]
  if not plan.fits:
    lines += ['', *_advice(plan)]
  return '\n'.join(lines)


def _collectives(plan):
  lines = []
  for name, each in plan.compiled.items():
    found = roofline.merged(each.cost.collectives) if each.cost else []
    shown = [c for c in found if c.moved >= 1e6]
    rest = sum(c.moved for c in found) - sum(c.moved for c in shown)
    if not shown:
      lines.append(f'{name}: no collective above 1 MB')
      continue
    lines.append(f'{name}: collectives, bytes into a device')
    for c in shown[:12]:
      hidden = 'in the background' if c.hidden else ''
      lines.append(
        f'  {c.kind:<20}{c.moved / 1e9:9.3f} GB  {c.times:8,.0f} x '
        f'{c.size / 1e6:9.1f} MB over {c.group:4d}  {hidden}'
      )
    rest += sum(c.moved for c in shown[12:])
    if rest:
      lines.append(f'  {"others":<20}{rest / 1e9:9.3f} GB')
  return lines


def _prediction(plan, price):
  lines = ['']
  if (mfu := plan.mfu()) is not None:
    update = plan.compiled['update'].cost
    rate = plan.rows * plan.length / update.seconds / plan.slice_.chips
    lines.append(
      f'prediction: update MFU {mfu:.1%}, HFU {plan.hfu():.1%}, '
      f'{rate:,.0f} tokens/s a chip; {update.binds} binds'
    )
  if (seconds := plan.step_seconds()) is not None:
    line = (
      f'prediction: a step takes {_few_digits(seconds)} s, if every trace uses '
      'its whole budget and grading is hidden'
    )
    if price is not None:
      cost = price * plan.slice_.chips * 1000 * seconds / 3600
      line += (
        f'; ${_few_digits(cost)} per thousand steps at ${price:g} a chip and '
        'hour'
      )
    lines.append(line)
  return lines


def _few_digits(value: float) -> str:
  """Returns 1,234 or 12.3 or 0.0012: what a prediction is worth."""
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _advice(plan):
  """Returns what to change, one line for each program that does not fit."""
  config, lines = plan.config, []
  hbm = plan.slice_.chip.hbm / plan.slice_.chip.devices
  for name, each in plan.compiled.items():
    if not each.problem:
      continue
    over = each.peak / 1e9, hbm / 1e9
    what = []
    if name == 'update':
      if config.model.get('remat') not in ('full', True):
        what.append('--config.model.remat=full')
      if config.model.get('attention') != 'flash':
        what.append('--config.model.attention=flash')
      rows = plan.rows // config.batching.mini_batches
      micro = config.batching.micro_batches
      mesh = config.parallel.mesh
      shards = plan.slice_.devices // (mesh.tensor * mesh.context)
      if rows >= 2 * micro * shards:
        what.append(f'--config.batching.micro_batches={2 * micro}')
      elif shards % 2 == 0:  # one trace a device: half of each
        what.append(
          f'--config.parallel.mesh.context={2 * mesh.context} with '
          '--config.batching.rows_per_device=1'
        )
      what.append('a larger --config.parallel.mesh.fsdp')
    else:
      if name == 'generate' and config.rollout.get('cache_buckets'):
        what.append("'--config.rollout.cache_buckets=()'")
      prompts = config.rollout.num_prompts
      what.append(f'--config.rollout.num_prompts={max(1, prompts // 2)}')
      what.append('a shorter --config.rollout.thinking_budget')
    lines.append(
      f'{name} needs {over[0]:.1f} GB a device of {over[1]:.1f}: try '
      + ', or '.join(what)
      + '; --search tries meshes and micro-batches.'
    )
  return lines


def as_json(plan) -> dict:
  """Returns a plan as JSON values."""
  rows = {}
  for name, each in plan.compiled.items():
    row = dataclasses.asdict(each)
    if each.cost is not None:
      row['cost'] |= {'seconds': each.cost.seconds, 'binds': each.cost.binds}
    rows[name] = row
  return {
    'topology': plan.slice_.name,
    'chips': plan.slice_.chips,
    'mesh': plan.config.parallel.mesh.to_dict(),
    'micro_batches': plan.config.batching.micro_batches,
    'parameters': plan.parameters,
    'rows': plan.rows,
    'length': plan.length,
    'mfu': plan.mfu(),
    'hfu': plan.hfu(),
    'step_seconds': plan.step_seconds(),
    'programs': rows,
  }
