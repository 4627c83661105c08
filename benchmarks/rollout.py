"""Useful tokens a second of a rollout, beside Tunix's sampler and TRL's.

    bash benchmarks/peers.sh          (once: makes .venv-tunix and .venv-trl)
    python benchmarks/rollout.py [--sizes=0.5M,10M,135M] [--peers=tunix,trl]
      [--cases=long-tailed,equal] [--rounds=5] [--json=rollout.json] [--add]

The same weights, a checkpoint in Hugging Face's format, the same prompts, eight
traces each, at temperature 1. How long a trace is the benchmark says, not the
model: in the long-tailed case four of five are geometric with mean 32 and the
fifth is 256 tokens, in the equal one all are 128. Tokens behind the end of a
trace are not counted. Before anything is timed, the logits of all engines are
compared.

Each engine is a process in an environment of its own, stopped while another is
timed. Each way that it offers is tried, three times if that is short, and the
fastest of an engine is run in turn with the others, A B C A B C, a short run
behind one that does not count. What is printed are medians, with quartiles; a
ratio is ours by theirs, with the quartiles of its single pairs. A comparison
may be made in pieces: --add keeps what is in the file of --json, which has to
be of the same commit and machine, and adds the rounds to it.

The limit is what the machine itself can do at the model's own shapes: a step
takes at least as long as its bare matrix products on so many rows, the faster
of XLA's and torch's, and as reading the weights once.
"""

import functools

import numpy as np
from absl import app, flags
from peers import common, compare, engines, workload

from meta_rl import command_line

FLAGS = flags.FLAGS


def measure(size: str, names: list[str], folder, before: dict) -> dict:
  """Returns all figures of one size, those of `before` among them."""
  folder = folder / size
  folder.mkdir(parents=True, exist_ok=True)
  paths = workload.write(folder, workload.rollout_cases(workload.SIZES[size]))
  with engines.started(names, folder) as workers:
    found = common.load(workers, size, folder)
    before = common.comparable(before, found)
    found['cases'] = dict(before.get('cases', {}))
    for case in FLAGS.cases:
      rows = measure_case(workers, paths[case])
      add_limits(rows, workers, found['parameters'])
      rows = compare.joined(rows, found['cases'].get(case, {}))
      found['cases'][case] = compare.with_rates(rows)
  return found


def measure_case(workers: dict, path: str) -> dict[str, dict]:
  """Returns the seconds of each engine at its best."""
  case = np.load(path)
  count, batch = len(case['lengths']), int(case['batch'])
  more = {}

  def run(name, mode, fresh=False):
    del fresh  # a rollout leaves nothing behind
    return workers[name].ask('rollout', path=path, mode=mode, seed=0)

  def choose(name):
    offered = workers[name].ask('modes', rows=count, batch=batch)
    return common.best_of(name, offered, functools.partial(run, name))

  ways = common.best_ways(workers, choose)
  for name, (best, tried) in ways.items():
    slots = best.get('more', {}).get('slots')
    at_once = min(slots or best['batch'], count)
    more[name] = {'way': best['name'], 'rows_at_once': at_once, 'tried': tried}
  calls = common.turns(run, ways)
  found = compare.side_by_side(compare.alternate(calls, FLAGS.rounds))
  return {name: row | more[name] for name, row in found.items()}


def add_limits(rows: dict, workers: dict, parameters: int):
  """Adds what the machine can do at as many rows at once as each engine has."""
  known = {}
  for row in rows.values():
    count = row['rows_at_once']
    if count not in known:
      known[count] = limit(workers, count, parameters)
    row |= known[count]


def limit(workers: dict, rows: int, parameters: int) -> dict:
  """Returns the limit of decoding so many rows at once, tokens/s, and why."""
  bare = common.bare_products(workers, rows, backward=False)
  read = 4 * parameters / bare['read_gb_s'] / 1e9
  return {
    'matmul_gflops': bare['gflops'],
    'read_gb_s': bare['read_gb_s'],
    'limit_tokens_per_s': rows / max(read, bare['seconds']),
  }


def lines(found: dict) -> str:
  """Returns the table of all sizes."""
  table = [
    (
      *('size', 'case', 'engine', 'way', 'tokens/s', 'limit', 'share'),
      'ours is faster',
    )
  ]
  for size, figures in found.items():
    for case, rows in figures['cases'].items():
      for name, row in rows.items():
        rate = compare.spread(row['tokens_per_s'], row['quartiles'])
        limit_ = f'{row["limit_tokens_per_s"]:,.0f}'
        share = f'{row["tokens_per_s"] / row["limit_tokens_per_s"]:.0%}'
        known = (size, case, name, row['way'], rate, limit_, share)
        table.append((*known, common.ratio_cell(row)))
  return compare.table(table, words=4)


def main(argv):
  """Runs the benchmark and prints its table."""
  common.run(measure, lines, argv)


if __name__ == '__main__':
  common.define_flags()
  flags.adopt_module_key_flags(common)  # for --help
  app.run(main, flags_parser=command_line.parse_flags)
