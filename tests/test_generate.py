"""The command that samples: its traces are the policy's, whatever the batch."""

import json
import types

import jax
import numpy as np
import pytest
from absl import flags

from meta_rl import (
  external,
  generate,
  held_out,
  setup_run,
  setup_steps,
  signals,
  tasks,
  tokenizer,
)
from meta_rl.compiled import CountedJit

pytest_plugins = ['small_runs']


@pytest.fixture(scope='module')
def start(small):
  """A config and the parameters that it starts with."""
  config = small.config('mrt')
  return config, setup_run.initial_params(config)


def sample(start, **changes):
  options = {'num_prompts': 6, 'group_size': 2, 'seed': 3} | changes
  return list(generate.sample(*start, **options))


@pytest.fixture(scope='module')
def rows(start):
  return sample(start, batch_size=4)


def test_rows_are_traces_of_the_first_problems(start, rows):
  config, _ = start
  assert len(rows) == 12
  source = setup_run.load_problems(config, 'train')
  for i, row in enumerate(rows):
    numbers = ' '.join(map(str, np.asarray(source[i // 2]['numbers'])))
    target = int(source[i // 2]['target'])
    assert row['prompt'] == f'<bos> {numbers} = {target} <think>'
    assert tokenizer.encode(row['prompt']) == row['prompt_ids']
    assert tokenizer.decode(row['response_ids']) == row['response']
    assert len(row['log_probs']) == len(row['response_ids'])
    assert row['reward'] in (0.0, 1.0)
  # 27 of thought, the marker, 6 of the answer; some thoughts fill the budget.
  forced = [row for row in rows if None in row['log_probs']]
  assert forced
  assert forced[0]['log_probs'].index(None) == 27


@pytest.mark.full
def test_samples_do_not_depend_on_the_batch(start, rows):
  """Equal tokens; log-probs as near as two shapes of one product are."""
  whole = sample(start, batch_size=64)
  drop = lambda row: {k: v for k, v in row.items() if k != 'log_probs'}
  assert list(map(drop, whole)) == list(map(drop, rows))
  for a, b in zip(whole, rows):
    known = [(x, y) for x, y in zip(a['log_probs'], b['log_probs']) if x]
    np.testing.assert_allclose(*zip(*known), atol=1e-5)
  assert list(map(drop, sample(start, seed=4))) != list(map(drop, rows))


def test_they_are_what_training_samples(start, rows):
  """Of the same problems with the same key."""
  config, params = start
  source = setup_run.load_problems(config, 'train')
  task = setup_run.make_task(config)
  model = setup_run.make_model(config, task)
  call, _ = setup_steps.make_calls(config, model, task, group_size=2)
  arrays = setup_run.task_kit(config).record_arrays
  batch = held_out.stack([arrays(source[i]) for i in range(4)])
  traces, _ = CountedJit(call)(params, batch, jax.random.key(3))
  want = external.rows_of(
    jax.device_get(traces), prompt_length=7, decode=tokenizer.decode
  )
  got = [{k: v for k, v in row.items() if k != 'reward'} for row in rows[:8]]
  assert got == want


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'group_size': 0}, 'group_size must be a whole number >= 1, got 0'),
    ({'num_prompts': 0}, 'num_prompts=0 is given; the split .train. has 1'),
    ({'num_prompts': 10**6}, 'num_prompts=1000000 is given; the split'),
    ({'batch_size': 0}, 'batch_size must be a whole number >= 1, got 0'),
    ({'seed': -1}, 'seed must be >= 0 and <= 4294967295, got -1'),
    ({'seed': 2**32}, 'seed must be >= 0 and <= 4294967295, got 4294967296'),
    ({'split': 'x'}, "split 'x' must be one of"),
  ],
)
def test_sizes_out_of_range(changes, message, start):
  with pytest.raises(ValueError, match=message):
    sample(start, **changes)


# ---- the command


@pytest.fixture
def command(monkeypatch, start):
  """Runs `main` with flags; returns the exit code."""
  defaults = {
    'config': start[0],
    'workdir': None,
    'which': 'last',
    'out': None,
    'num_prompts': 2,
    'group_size': 2,
    'split': 'train',
    'batch_size': 4,
    'seed': 0,
    'show': 1,
    'model': None,
  }

  def run(**changes):
    given = types.SimpleNamespace(**defaults | changes)
    monkeypatch.setattr(generate, 'FLAGS', given)
    monkeypatch.setattr(generate, 'check_flags', lambda: None)
    try:
      generate.main(['generate'])
    except SystemExit as error:
      return error.code
    return signals.EXIT_OK

  return run


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--workdir=x', '--prompt=hi'], '--prompt is of --model alone'),
    (['--thinking_budget=9'], '--thinking_budget is of --model alone'),
    (
      ['--model=m', '--workdir=x'],
      '--workdir is of --workdir or --config, and',
    ),
    (['--model=m', '--show=2'], '--show is of --workdir or --config, and'),
    (['--model=m', '--prompt=hi', '--dtype=bfloat16', '--top_k=3'], None),
    (['--workdir=x', '--top_p=0.9'], '--top_p is of --model alone'),
    (['--workdir=x', '--show=2', '--seed=1'], None),
  ],
)
def test_flags_of_the_other_use(monkeypatch, argv, message):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  monkeypatch.setattr(generate, 'FLAGS', values)
  names = {**dict.fromkeys(generate._OF_MODEL), 'model': None, 'seed': None}
  for name in (*names, *generate._OF_POLICY):
    flags.DEFINE_string(name, None, '', flag_values=values)
  values(['generate', *argv])
  if message is None:
    generate.check_flags()
    return
  with pytest.raises(ValueError, match=message):
    generate.check_flags()


def test_the_command_prints_and_writes(command, tmp_path, capsys):
  out = tmp_path / 'new' / 'rollouts.jsonl'
  assert command(out=str(out)) == 0
  printed = capsys.readouterr().out.splitlines()
  written = [json.loads(line) for line in out.read_text().splitlines()]
  assert len(written) == 4
  # One trace is shown: prompt, response, reward; then the summary.
  assert printed[:2] == [written[0]['prompt'], '  ' + written[0]['response']]
  assert printed[2].startswith('  reward ')
  assert printed[3].startswith('4 traces of 2 prompts, mean reward ')
  assert printed[3].endswith(f'; written to {out}')
  assert len(printed) == 4
  kit = tasks.make_kit('countdown')
  read = external.read_rows(
    out, vocab_size=128, task=kit.make_task(), encode=kit.encode
  )
  assert len(read) == 4
  assert command(group_size=None, show=0) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith('8 traces of 2 prompts')  # the config's 4 a prompt
  assert 'written' not in line


def test_the_policy_of_a_run(command, trained, start, tmp_path, capsys):
  files = [tmp_path / name for name in ('run.jsonl', 'start.jsonl')]
  assert command(config=None, workdir=str(trained.folder), out=files[0]) == 0
  assert command(out=files[1]) == 0
  assert files[0].read_text() != files[1].read_text()
  assert 'written to' in capsys.readouterr().out


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'config': None}, 'give one of the three: --workdir'),
    ({'workdir': 'runs'}, 'give one of the three: --workdir'),
    ({'config': None, 'workdir': 'none'}, 'none holds no config.json'),
    ({'num_prompts': 0}, 'num_prompts=0'),
  ],
)
def test_what_the_command_refuses(changes, message, command, capsys):
  assert command(**changes) == signals.EXIT_ERROR
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert error.count('\n') == 1
