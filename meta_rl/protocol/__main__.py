"""The official MRT evaluation: regret and votes of forced answers, from files.

    python -m meta_rl.protocol base.jsonl mrt.jsonl grpo.jsonl --out=found.json
    python -m meta_rl.protocol base.jsonl --compat=all

A FILE holds the traces of one model (rows.py says how; prompts.py what
to sample). Printed, and written as JSON:

  regret  normalized regret at each horizon, the trapezoid and the step form
  curve   accuracy against tokens
  votes   [maj@p]_j against thinking on at equal tokens
  waits   accuracy after budget forcing

each with a 95% bootstrap over problems, and the files after the first paired
with it by problem. The public notebooks' faults are put right; `--compat` has
them back (`curves.FAULTS`), all or by name.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Collection, Sequence

from meta_rl import checks, files, text_tokenizer, token_curves
from meta_rl.protocol import curves, figures, grades, rows
from meta_rl.verifiers import VerifierError


class _Parser(argparse.ArgumentParser):
  """Says what cannot be used in one line, as every command does."""

  def error(self, message: str):
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)


def table(results: Sequence[dict], budget: float) -> str:
  """Returns the figures as text.

  Args:
    results: of `run`.
    budget: horizons beyond it are marked.
  """
  lines = []
  for key, title in (
    ('regret_normalized', 'normalized regret, trapezoid'),
    ('regret_step', 'normalized regret, step'),
  ):
    columns = [(found['name'], found[key]) for found in results]
    columns += [
      (f'{found["name"]} less {found["to"]["to"]}', found['to'][key])
      for found in results[1:]
      if found['to'][key]
    ]
    widths = [max(27, len(name) + 2) for name, _ in columns]
    lines += [title, f'{"tokens":>10}  ' + _cells(columns, widths, None)]
    for i, horizon in enumerate(results[0]['horizons']):
      mark = '+' if horizon > budget else ' '
      lines.append(f'{horizon:>10,.0f}{mark} ' + _cells(columns, widths, i))
    lines.append('')
  if max(results[0]['horizons']) > budget:
    lines[-1:] = ['+ beyond the budget, by budget forcing', '']
  for found in results:
    lines += [f'votes of {found["name"]}', _vote_lines(found['votes'])]
    lines += [
      f'after {each["waits"]} waits, {each["tokens"]:,.0f} tokens: '
      f'accuracy {each["accuracy"]["mean"]:.4f}'
      for each in found['waits']
    ]
    lines.append('')
  return '\n'.join(lines[:-1])


def _cells(columns, widths, index: int | None) -> str:
  """Returns one row of columns, their names for None."""
  texts = [
    name
    if index is None
    else f'{own[index]["mean"]:.4f} [{own[index]["low"]:.3f}, '
    f'{own[index]["high"]:.3f}]'
    for name, own in columns
  ]
  return ''.join(f'{t:<{w}}' for t, w in zip(texts, widths)).rstrip()


def _vote_lines(found: dict) -> str:
  lines = [f'{"j":>4}{"p":>4}{"tokens":>10}{"maj@p":>8}{"think on":>10}  gain']
  for p in found['sizes'][1:]:
    own = found[str(p)]
    for j, gain in enumerate(own['gain']):
      lines.append(
        f'{j:>4}{p:>4}{own["tokens"][j]:>10,.0f}{own["accuracy"][j]:>8.4f}'
        f'{own["thinking_on"][j]:>10.4f}  {gain["mean"]:+.4f} '
        f'[{gain["low"]:+.3f}, {gain["high"]:+.3f}]'
      )
  return '\n'.join(lines)


def _comparator(text: str):
  """Returns a number, or the curve of a JSON file."""
  try:
    value = float(text)
  except ValueError:
    value = None
  try:
    if value is None:
      record = json.loads(pathlib.Path(text).read_text('utf-8'))
      curve = token_curves.as_curve(record['tokens'], record['accuracy'])
      return tuple(array.tolist() for array in curve)
    if math.isfinite(value):
      return value
    problem = 'it is not finite'
  except (OSError, ValueError, KeyError, TypeError) as error:
    problem = files.one_line(error)
  raise ValueError(
    f'--comparator={text}: a number is needed, or a JSON file with "tokens" '
    f'and "accuracy", a list each ({problem}).'
  )


def _numbers(
  name: str, text: str, kind: type = float, *, one: bool = False
) -> list:
  """Returns the numbers of a flag, `one` or several."""
  try:
    values = [kind(each) for each in text.split(',')]
  except ValueError:
    values = []
  rising = all(a < b for a, b in zip(values, values[1:]))
  above = bool(values) and 0 < values[0] <= values[-1] < math.inf
  if not rising or not above or (one and len(values) > 1):
    what = 'one number' if one else 'rising numbers'
    raise ValueError(
      f'--{name}={text}: {what} above 0, such as '
      f'{"1,2,4" if kind is int else "4096" if one else "4096,8192"}.'
    )
  return values


def _compat(text: str) -> bool | list[str]:
  if text in ('', 'none', 'all'):
    return text == 'all'
  return text.split(',')


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = _Parser(
    prog='python -m meta_rl.protocol',
    description="Normalized regret and votes by the official MRT evaluation's "
    'protocol.',
    epilog='What a row of a FILE holds is said in meta_rl/protocol/rows.py: '
    'python -c "import meta_rl.protocol.rows as rows; print(rows.__doc__)".',
  )
  add = parser.add_argument
  add('files', nargs='+', metavar='FILE', help='JSONL, the traces of one model')
  add('--out', default='', help='JSON file for all figures')
  add('--horizons', default='', help='tokens; default: by --budget and waits')
  add('--budget', default=str(curves.BUDGET), help='tokens of thinking')
  add('--wait_tokens', default=str(curves.WAIT_TOKENS), help='of each wait')
  add('--comparator', default='1', help='a number, or a JSON file of a curve')
  add('--sizes', default='', help='p of the votes; default: 1,2,4...')
  add('--compat', default='', help=f'all, or some of {",".join(curves.FAULTS)}')
  add('--cell_runs', type=int, default=1, help='of the notebook, under rerun')
  add('--verifier', default='', help='math or exact; default: math if it is')
  add('--tokenizer', default='', help='checkpoint folder, for ids and counts')
  return parser.parse_args(arguments)


def read_models(
  paths: Sequence[str], *, faults: Collection[str], verifier: str, **words
) -> list[tuple[str, list[grades.Trace], int]]:
  """Returns (name, traces, how many answers have no grade) of each file.

  Args:
    paths: named by their stems, or in full where these are alike.
    faults, verifier: of `grades.grade_rows`.
    **words: of `rows.read_rows`.

  Raises:
    ValueError: one line with the file.
  """
  stems = [pathlib.Path(path).stem for path in paths]
  names = stems if len(set(stems)) == len(stems) else paths
  found = []
  for name, path in zip(names, paths):
    files.check_input('FILE', path)
    read = rows.read_rows(path, **words)
    try:
      graded = grades.grade_rows(read, faults=faults, verifier=verifier)
    except VerifierError:
      raise
    except ValueError as error:
      raise ValueError(f'{path}, {error}') from error
    found.append((name, *graded))
  return found


def run(options: argparse.Namespace) -> list[dict]:
  """Returns the figures of each file, those after the first paired with it.

  Raises:
    ValueError: a file or an option that cannot be used, in one line.
  """
  faults = curves.faults_of(_compat(options.compat))
  given = {
    'budget': _numbers('budget', options.budget, one=True)[0],
    'wait_tokens': _numbers('wait_tokens', options.wait_tokens, one=True)[0],
  }
  comparator = _comparator(options.comparator)
  horizons = options.horizons and _numbers('horizons', options.horizons)
  sizes = _numbers('sizes', options.sizes, int) if options.sizes else None
  verifier = options.verifier or grades.default_verifier()
  checks.check_choice('--verifier', verifier, grades.VERIFIERS)
  if options.out:
    files.check_output('--out', options.out)
  words = {}
  if options.tokenizer:
    loaded = text_tokenizer.load(options.tokenizer)
    words = {'encode': loaded.encode, 'decode': loaded.decode}
  models = read_models(options.files, faults=faults, verifier=verifier, **words)
  if not horizons:
    every = [trace for _, traces, _ in models for trace in traces]
    horizons = figures.default_horizons(every, **given)
  results = []
  for name, traces, failed in models:
    found = figures.evaluate_traces(
      traces,
      name=name,
      horizons=horizons,
      comparator=comparator,
      sizes=sizes,
      compat=faults,
      cell_runs=options.cell_runs,
      **given,
    )
    found |= {'verifier': verifier, 'ungraded': failed}
    if results:
      found['to'] = figures.compare(found, results[0])
    results.append(found)
  return results


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command: 0, or 1 after one line of error."""
  options = _parse(arguments)
  try:
    results = run(options)
    if options.out:
      text = json.dumps({'models': results}, indent=1)
      files.atomic_write(options.out, text.encode())
  except (ValueError, OSError) as error:
    print(f'error: {files.one_line(error, 2000)}', file=sys.stderr)
    return 1
  for found in results:
    notes = list(found['departures'])
    if found['ungraded']:
      notes.append(f'{found["ungraded"]} answers could not be graded: wrong')
    for line in notes:
      print(f'note: {found["name"]}: {line}', file=sys.stderr)
  print(table(results, float(options.budget)))
  if options.out:
    print(f'\nWrote {options.out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
