"""Bad input to the commands: one clear line, exit code 1, nothing left behind.

Each line says what was given, what is allowed, and where it is not obvious what
to do.
"""

import os
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT

from meta_rl import (
  check_config,
  checkpoint,
  command_line,
  setup_run,
  signals,
  train,
  weights,
  workdir,
)

pytest_plugins = ['small_runs']


def refused(result):
  """The one line with which a run was refused."""
  assert result.code == signals.EXIT_ERROR
  (line,) = result.err.splitlines()
  assert line.startswith('error: ')
  assert 'Traceback' not in line
  return line


# name of the config, changed keys, parts of the line
SIZES = [
  ('mrt', {'rollout__thinking_budget': 8}, 'thinking_budget=8', '9 tokens'),
  ('grpo', {'rollout__group_size': 1}, 'rollout.group_size=1', 'at least 2'),
  (
    'mrt',
    {'rollout__group_size': 1, 'algorithm__credit': 'immediate'},
    'rollout.group_size=1',
    'at least 2',
  ),
  ('mrt', {'rollout__num_prompts': 3}, '3 prompts x 4', 'mini_batches=2'),
  ('mrt', {'batching__micro_batches': 5}, 'micro_batches=5', '4 prompts x 4'),
  (
    'grpo',
    {'rollout__dynamic_sampling__max_rounds': 1},
    'max_rounds=1',
    'allowed is >= 2',
  ),
  (
    'mrt',
    {'rollout__dynamic_sampling__max_rounds': 2, 'rollout__group_size': 1},
    'max_rounds=2',
    'group_size >= 2',
  ),
  ('lcpo', {'algorithm__alpha': -1.0}, 'alpha', '>= 0'),
  ('lcpo', {'algorithm__shaping': 'none'}, 'does nothing', "shaping='none'"),
  ('mrt', {'model__vocab_size': 100}, 'model.vocab_size=100', '116'),
  ('mrt', {'model__width': 15}, 'width=15', 'num_heads=2'),
  ('mrt', {'rollout__temperature': -1.0}, 'temperature=-1.0', '> 0'),
  ('mrt', {'rollout__temperature': 0.0}, 'temperature=0.0', '> 0'),
  ('mrt', {'rollout__top_k': 5}, 'top_k=5', 'None'),
  ('mrt', {'rollout__top_p': 0.9}, 'top_p=0.9', 'None'),
  ('mrt', {'loss__chunk': 0}, 'loss.chunk=0', '>= 1, or None'),
  ('mrt', {'algorithm__outcome_mass': 2.0}, 'outcome_mass', '<= 1'),
  ('mrt', {'algorithm__price': -1.0}, 'price', '>= 0'),
  ('mrt', {'prover__kind': 'none'}, "name='mrt' needs a prover", "'sampled'"),
  *(
    (name, {'loss__pathwise__boundaries': kind} | changes, kind, allowed)
    for name, kind, changes, allowed in (
      ('grpo', 'last', {}, "algorithm.name='mrt'"),
      ('sft', 'last', {}, "algorithm.name='mrt'"),
      (
        'mrt',
        'last',
        {'algorithm__credit': 'immediate', 'algorithm__decay': 1.0},
        'return_to_go',
      ),
      ('mrt', 'all', {'algorithm__credit': 'return_to_go'}, 'token_weighted'),
      ('mrt', 'all', {'prover__kind': 'sampled'}, "prover.kind='exact'"),
    )
  ),
  (
    'mrt',
    {'loss__pathwise__boundaries': 'all', 'loss__pathwise__coef': 0.0},
    'loss.pathwise.coef',
    '> 0',
  ),
  ('mrt', {'loss__pathwise__alone': True}, 'alone=True', 'alone=False'),
  ('mrt', {'loss__pathwise__coef': 0.5}, 'coef=0.5', 'coef=1'),
  (
    'star',
    {'algorithm__select': 'progress'},
    'keeps every right trace of 4',
    'lower one',
  ),
  (
    'star',
    {'algorithm__select': 'progress', 'prover__kind': 'none'},
    "select='progress' needs a prover",
    "'sampled'",
  ),
  ('star', {'algorithm__keep_share': 0.0}, 'keep_share', '> 0 and <= 1'),
  ('mrt_rl', {'rollout__group_size': 3}, 'group_size=3', 'even number'),
  ('mrt_rl', {'algorithm__alpha': -1.0}, 'alpha', '>= 0'),
  ('mrt', {'total_cost': 0.0}, 'total_cost=0.0', '> 0, or None'),
  ('sft', {'total_cost': 1.0}, 'total_cost=1.0', 'total_steps'),
  ('mrt', {'total_tokens': -1.0}, 'total_tokens=-1.0', '> 0, or None'),
  ('sft', {'total_tokens': 1.0}, 'total_tokens=1.0', 'total_steps'),
  *(
    (
      'mrt',
      {'prover__boundaries': 'budgets', 'prover__budgets': budgets},
      f'prover.budgets={budgets}',
      'whole numbers >= 1, each above the one before',
    )
    for budgets in ((1.5, 27), ('a', 27), (True, 27), (0, 27), (27, 27))
  ),
  ('mrt', {'seed': -1}, 'seed must be', '>= 0 and <= 4294967295, got -1'),
  (
    'mrt',
    {'seed': 2**32},
    'seed must be',
    '>= 0 and <= 4294967295, got 4294967296',
  ),
  ('sft', {'seed': -1}, 'seed must be', '>= 0 and <= 4294967295, got -1'),
  (
    'mrt',
    {'loss__clip_low': -1.0},
    'loss.clip_low must be',
    '>= 0 and <= 1, got -1.0',
  ),
  (
    'mrt',
    {'loss__clip_low': 2.0},
    'loss.clip_low must be',
    '>= 0 and <= 1, got 2.0',
  ),
  (
    'mrt',
    {'loss__clip_high': -1.0},
    'loss.clip_high must be',
    '>= 0, got -1.0',
  ),
  ('mrt', {'model__rope_base': 0.0}, 'model.rope_base must be', '> 0, got 0.0'),
  *(
    (
      'sft',
      {'data__' + key.replace('.', '__'): value},
      f'data.{key} must be',
      f'>= 0 and <= 1, got {value}',
    )
    for key, value in (
      ('traces.p_stop', 2.0),
      ('traces.p_continue', -1.0),
      ('buckets.short.long_share', 3.0),
      ('buckets.long.direct_share', -2.0),
    )
  ),
  ('sft', {'loss__kl_coef': 0.1}, 'loss.kl_coef=0.1', 'set it to 0'),
  ('sft', {'loss__entropy_coef': 0.1}, 'loss.entropy_coef=0.1', 'set it to 0'),
  *(
    ('mrt', {key.replace('.', '__'): 0}, f'{key}=0', 'allowed is >= 1')
    for key in check_config._COUNTS
  ),
]
CHOICES = [
  ('mrt', {'algorithm__name': 'trpo'}, 'algorithm.name', "'sft'"),
  ('mrt', {'algorithm__credit': 'all'}, 'algorithm.credit', 'return_to_go'),
  ('mrt', {'algorithm__baseline': 'x'}, 'baseline', "'continuing', 'none'"),
  ('mrt', {'loss__pathwise__boundaries': 'x'}, 'pathwise.boundaries', 'last'),
  ('grpo', {'algorithm__baseline': 'x'}, 'baseline', 'leave_one_out'),
  ('dapo', {'algorithm__shaping': 'x'}, 'shaping', 'overlong'),
  ('mrt', {'prover__kind': 'oracle'}, "kind 'oracle'", "'exact'"),
  ('star', {'algorithm__select': 'x'}, 'algorithm.select', 'progress'),
  ('mrt_rl', {'algorithm__form': 'x'}, 'algorithm.form', 'difference'),
  ('mrt_rl', {'algorithm__prefix_policy': 'x'}, 'prefix_policy', 'current'),
  ('mrt_rl', {'algorithm__prefix_success': 'x'}, 'prefix_success', 'direct'),
  ('mrt', {'loss__aggregate': 'sum'}, 'loss.aggregate', 'token_mean'),
  ('mrt', {'loss__surrogate': 'x'}, 'loss.surrogate', 'cispo'),
  ('mrt', {'loss__ratio': 'x'}, 'loss.ratio', 'sequence'),
  ('mrt', {'loss__kl_estimator': 'k4'}, 'loss.kl_estimator', 'k3'),
  ('mrt', {'task__name': 'chess'}, "task.name='chess'", 'countdown'),
  ('mrt', {'optimizer__schedule': 'x'}, "schedule='x'", 'cosine'),
  ('mrt', {'parallel__kind': 'x'}, "'x'", 'pmap'),
  ('sft', {'data__source': 'web'}, "data.source='web'", 'traces, jsonl'),
  ('sft', {'data__pattern': ('x',)}, 'data.pattern', 'long, short'),
  ('sft', {'data__pattern': ()}, 'data.pattern', 'long, short'),
]
DATA = [
  ('mrt', {'eval__num_problems': 10**6}, 'num_problems=1000000', 'holds'),
  ('mrt', {'rollout__num_prompts': 10**6}, '1000000', 'train split holds'),
  ('mrt', {'task__ops': '^'}, "ops '^'", '+-*/'),
  ('mrt', {'task__n': 9}, 'task.n must be', '<= 5, got 9'),
  ('mrt', {'optimizer__learning_rate': -1.0}, 'learning_rate=-1.0', '> 0'),
  (
    'mrt',
    {'optimizer__learning_rate': float('inf')},
    'learning_rate=inf',
    'finite',
  ),
  ('sft', {'data__source': 'jsonl'}, 'data.path', 'JSONL'),
  (
    'sft',
    {'data__source': 'jsonl', 'data__path': 'none.jsonl'},
    'none.jsonl',
    'there is no such file',
  ),
  ('sft', {'batching__micro_batches': 3}, 'batch_size=8', 'micro_batches=3'),
  ('sft', {'data__traces__max_episodes': 100}, 'length=448', 'raise it'),
]


@pytest.mark.parametrize(
  'name, changes, given, allowed', SIZES + CHOICES + DATA
)
def test_a_config_that_cannot_work(
  name, changes, given, allowed, small, tmp_path
):
  config = small.config(name, **changes)
  line = refused(small.run(config, tmp_path / 'run'))
  assert given in line
  assert allowed in line
  # The mended command may use the same folder.
  assert workdir.read_config(tmp_path / 'run') is None


@pytest.mark.parametrize(
  'source, message',
  [
    ('asset:none', "init_from='asset:none': no such asset"),
    ('none.safetensors', 'weights file none.safetensors does not exist'),
    ('none', "init_from='none' is neither a .safetensors file nor a run"),
  ],
)
def test_a_missing_start(source, message, small, tmp_path):
  config = small.config('mrt', init_from=source)
  assert message in refused(small.run(config, tmp_path / 'run'))


def test_a_foreign_start(small, tmp_path):
  wide = setup_run.initial_params(small.config('mrt', model__width=24))
  file = tmp_path / 'wide.safetensors'
  weights.save_safetensors(file, wide)
  config = small.config('mrt', init_from=str(file))
  line = refused(small.run(config, tmp_path / 'run'))
  assert 'has shape' in line
  assert 'this model needs' in line
  file.write_bytes(b'no weights at all')
  line = refused(small.run(config, tmp_path / 'run'))
  assert 'is not a safetensors file' in line
  config = small.config('mrt', init_from=str(tmp_path))
  line = refused(small.run(config, tmp_path / 'run'))
  assert 'holds no checkpoint: name a run folder' in line


def test_a_foreign_checkpoint(trained, small, tmp_path):
  """Of the folder of another model, put under this config."""
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'checkpoints').symlink_to(trained.folder / 'checkpoints')
  config = small.config('mrt', model__width=24)
  line = refused(small.run(config, folder))
  assert 'checkpoint of step 4' in line
  assert 'does not fit' in line
  # It is whole: nothing was set aside.
  with checkpoint.Checkpointer(
    trained.folder / 'checkpoints', read_only=True
  ) as saver:
    assert saver.all_steps() == [3, 4]


def test_another_config_in_the_folder(trained, small):
  config = small.config(
    'mrt', checkpoint__every=3, optimizer__learning_rate=1.0
  )
  line = refused(small.run(config, trained.folder))
  assert 'optimizer.learning_rate: 0.0001 -> 1.0' in line
  assert '--allow_change=optimizer.learning_rate' in line
  kept = workdir.read_config(trained.folder)
  assert workdir.difference(kept, trained.config.to_dict()) == {}


def test_a_folder_that_is_a_file(small, tmp_path):
  (tmp_path / 'file').write_text('x')
  line = refused(small.run(small.config('mrt'), tmp_path / 'file' / 'run'))
  assert 'is a file, or lies under one' in line


def test_a_folder_in_use(small, tmp_path):
  config = small.config('mrt')
  with workdir.open_workdir(tmp_path / 'run', config.to_dict()):
    line = refused(small.run(config, tmp_path / 'run'))
  assert 'is in use by another run' in line
  assert workdir.read_config(tmp_path / 'run') is not None


@pytest.mark.parametrize('span', ['3', '3:', 'a:b', '5:3', '0:2', '1:2:3'])
def test_profile_steps(span, small, tmp_path):
  result = small.run(small.config('mrt'), tmp_path / 'run', profile_steps=span)
  assert f'profile_steps={span!r} is given; allowed is first:last' in refused(
    result
  )


COMMANDS = [
  (
    ['train', '--config=mrt_countdown:tiny', '--config.rollot.top_k=1'],
    'unknown config key rollot.top_k: did you mean rollout',
  ),
  pytest.param(
    ['train', '--config=mrt_countdown:tinny'],
    "unknown argument 'tinny'",
    marks=pytest.mark.full,
  ),
  pytest.param(
    ['evaluate', '--config=mrt_cuontdown'],
    "no config 'mrt_cuontdown'",
    marks=pytest.mark.full,
  ),
]


def test_an_empty_file_to_write(monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_string('out', None, 'File.', flag_values=values)
  monkeypatch.setattr(flags, 'FLAGS', values)
  with pytest.raises(SystemExit, match='--out is empty'):
    command_line.parse_flags(['generate', '--out='])


@pytest.mark.parametrize('arguments, message', COMMANDS)
def test_flags_that_cannot_be_used(arguments, message, tmp_path):
  """From the command line itself, whose flags ml_collections reads."""
  result = subprocess.run(
    [sys.executable, '-m', f'meta_rl.{arguments[0]}', *arguments[1:]]
    + [f'--workdir={tmp_path / "run"}'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert result.returncode == signals.EXIT_ERROR
  (line,) = result.stderr.splitlines()
  assert line.startswith(f'error: {message}')
  assert not (tmp_path / 'run').exists()


def test_an_allowed_change_without_a_step_is_undone(trained, small):
  config = small.config('mrt', checkpoint__every=3, optimizer__b1=0.5)
  result = small.run(config, trained.folder, allow_change='optimizer.b1')
  assert result.code == 0
  assert 'nothing to do' in result.out
  kept = workdir.read_config(trained.folder)
  assert workdir.difference(kept, trained.config.to_dict()) == {}


def test_a_change_of_no_key_is_refused(small, tmp_path):
  config = small.config('mrt')
  result = small.run(config, tmp_path / 'run', allow_change='optimizer.lrate')
  line = refused(result)
  assert '--allow_change=optimizer.lrate: unknown config key' in line
  assert not (tmp_path / 'run').exists()


def test_an_allowed_change_that_fails_is_undone(trained, small):
  config = small.config('mrt', checkpoint__every=3, model__width=32)
  result = small.run(config, trained.folder, allow_change='model.width')
  assert result.code == 1
  # The first command still goes on where it was.
  kept = workdir.read_config(trained.folder)
  assert workdir.difference(kept, trained.config.to_dict()) == {}
  assert small.run(trained.config, trained.folder).code == 0


@pytest.mark.parametrize(
  'changes, given',
  [
    (
      {'algorithm__name': 'outcome'},
      "'outcome' does not take algorithm.credit",
    ),
    ({'algorithm__name': 'sft'}, "has no section 'data'"),
    ({'model__num_heads': -1}, 'model.num_heads=-1'),
    ({'rollout__thinking_budget': 10**12}, 'thinking_budget=1000000000000'),
    ({'batching__length_buckets': ('x',)}, "length_buckets=('x',)"),
    ({'loss__kl_coef': -1.0}, 'loss.kl_coef=-1.0'),
    ({'max_log_prob_gap': float('nan')}, 'max_log_prob_gap=nan'),
  ],
)
def test_values_of_another_algorithm_or_no_use(changes, given, small, tmp_path):
  config = small.config('mrt', **changes)
  assert given in refused(small.run(config, tmp_path / 'run'))


@pytest.mark.parametrize('name', ['mrt', 'grpo', 'brpo', 'prefix', 'star'])
def test_keys_that_the_run_gives_are_no_keys_of_an_algorithm(name, small):
  """They would be overwritten, or given twice."""
  config = small.config({'prefix': 'mrt_rl'}.get(name, name))
  given = ('measured', 'length', 'group_size', 'horizon', 'budgets')
  for key in (*given, 'axis_name'):
    wrong = config.copy_and_resolve_references()
    wrong.algorithm[key] = 2
    with pytest.raises(ValueError, match=f'does not take algorithm.{key}'):
      check_config.check(wrong)


def test_words_that_are_no_flags():
  command_line.refuse_arguments(['train'])
  with pytest.raises(SystemExit, match='Did you mean --config.total_steps=1'):
    command_line.refuse_arguments(['train', 'config.total_steps=1'])


@pytest.mark.parametrize('saved', [False, True])
def test_a_start_that_fails_leaves_no_reference(saved, small, tmp_path):
  """Unless something was saved, which is trained on against it."""

  def start(opened):
    with train.forget_failed_start(opened):
      (opened.path / setup_run.REFERENCE_NAME).write_bytes(b'weights')
      if saved:
        (opened.path / checkpoint.CHECKPOINTS_DIR / '1').mkdir(parents=True)
      raise ValueError('of the start')

  names = ('config.json', setup_run.REFERENCE_NAME)
  config = small.config('mrt').to_dict()
  with workdir.open_workdir(tmp_path / 'run', config) as opened:
    with pytest.raises(ValueError, match='of the start'):
      start(opened)
  found = [(tmp_path / 'run' / name).exists() for name in names]
  assert found == [saved, saved]


@pytest.mark.parametrize('made', [False, True])
def test_a_start_that_fails_leaves_what_was_there(made, small, tmp_path):
  folder = tmp_path / 'run'
  if not made:
    folder.mkdir()
    (folder / 'notes.txt').write_text('mine')
  changes = {'init_from': 'asset:none'}
  line = refused(small.run(small.config('mrt', **changes), folder))
  assert 'no such asset' in line
  if made:
    assert not folder.exists()
  else:
    assert {p.name for p in folder.iterdir()} == {'notes.txt', '.lock'}


def test_devices_that_do_not_fit(small, tmp_path):
  config = small.config('mrt', parallel__kind='jit', parallel__mesh__data=7)
  line = refused(small.run(config, tmp_path / 'run'))
  assert 'parallel.mesh: mesh data=7' in line
  assert 'devices' in line
  config = small.config('sft', parallel__kind='pmap')
  line = refused(small.run(config, tmp_path / 'run'))
  assert "parallel.kind='pmap' is of reinforcement" in line


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'optimizer__learning_rate': -1.0}, 'optimizer.learning_rate=-1.0'),
    ({'optimizer__schedule': 'foo'}, "optimizer.schedule='foo'"),
    ({'algorithm__price': -1.0}, 'algorithm.price must be >= 0'),
    ({'algorithm__alpha': -1.0}, 'algorithm.alpha must be >= 0'),
    ({'task__high': 500}, 'task.high must be'),
    ({'model__vocab_size': 3}, 'model.vocab_size=3 is below'),
    ({'eval__num_problems': 10**6}, 'eval.num_problems=1000000 is given'),
  ],
)
def test_a_refusal_names_the_key_as_it_is_given(
  changes, words, small, tmp_path
):
  line = refused(small.run(small.config('mrt', **changes), tmp_path / 'run'))
  assert line.startswith(f'error: {words}')
  assert not (tmp_path / 'run').exists()


@pytest.mark.full
def test_a_run_goes_on_without_what_it_started_from(small, tmp_path):
  start = small.run(small.config('mrt', total_steps=2), tmp_path / 'start')
  source = tmp_path / 'start.safetensors'
  like = setup_run.abstract_params(small.config('mrt'))
  params = weights.init_from(f'{start.folder}@last', like)
  weights.save_safetensors(source, params, {})
  options = {'init_from': str(source), 'loss__kl_coef': 0.1}
  half = small.config('mrt', total_steps=2, **options)
  assert small.run(half, tmp_path / 'run').code == 0
  source.unlink()
  whole = small.config('mrt', total_steps=4, **options)
  result = small.run(whole, tmp_path / 'run', allow_change='total_steps')
  assert result.code == 0, result.err
  # The KL is to the start, which the folder kept: it is not 0 at step 3.
  assert result.rows[-1]['loss/kl'] > 0
