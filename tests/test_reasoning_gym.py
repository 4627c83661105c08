"""The adapter of reasoning-gym: on a stand-in, and (full) on the package."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import random
import subprocess
import sys
import types

import pytest

from meta_rl import check_config, setup_run, sft
from meta_rl.configs import mrt_smollm2_135m
from meta_rl.tasks import make_kit, text_sources
from meta_rl.tasks import reasoning_gym as adapter
from meta_rl.verifiers import reasoning_gym as scoring

pytest_plugins = ['small_runs']

# ---- a stand-in with the habits of the package


@dataclasses.dataclass
class AddConfig:
  """Options of the stand-in's tasks."""

  high: int = 50
  size: int = 500
  seed: int = 0

  def validate(self):
    """As the package does."""
    assert self.high > 0, 'high must be positive'


class Add:
  """a + b: item i of seed s is item i + 1 of seed s - 1; 0.05 if near."""

  def __init__(self, config):
    config.validate()
    self.config = config

  def __getitem__(self, index):
    rng = random.Random(self.config.seed + index)
    a, b = rng.randrange(self.config.high), rng.randrange(self.config.high)
    return {
      'question': f'What is  {a} + {b}?\n',
      'answer': str(a + b),
      'metadata': {'numbers': [a, b]},
    }

  def score_answer(self, answer, entry):
    """Returns 1.0, or some of it."""
    gap = abs(int(answer) - int(entry['answer']))
    return 1.0 if gap == 0 else 0.05 if gap < 3 else 0.01


class Bare(Add):
  """A task that has no answer of its own, and takes any."""

  def __getitem__(self, index):
    return super().__getitem__(index) | {'answer': None}

  def score_answer(self, answer, entry):
    return 1.0


class Broken(Add):
  """A task that cannot make its third problem."""

  def __getitem__(self, index):
    if index == 2:
      raise RuntimeError('no\nway')
    return super().__getitem__(index)


class Odd(Add):
  """A task whose verifier wants what JSON does not keep."""

  def __getitem__(self, index):
    item = super().__getitem__(index)
    numbers = tuple(item['metadata']['numbers'])
    return item | {'metadata': {'numbers': numbers, 'of': {1: numbers}}}

  def score_answer(self, answer, entry):
    """Returns 1.0 where the numbers are a tuple by a number."""
    found = entry['metadata']
    right = isinstance(found['numbers'], tuple)
    if self.config.high > 50:
      right &= 1 in found['of']
    return 1.0 if right and answer == entry['answer'] else 0.0


@pytest.fixture
def stand_in(monkeypatch):
  """Puts a package with a few tasks where reasoning_gym is imported from."""
  registry = {
    **dict.fromkeys(('add', 'puzzle24', 'complex_arithmetic'), Add),
    **dict.fromkeys(('countdown', 'simple_integration', 'n_queens'), Bare),
    'bare': Bare,
    'broken': Broken,
    'odd': Odd,
  }
  factory = types.ModuleType('reasoning_gym.factory')
  factory.DATASETS = {k: (v, AddConfig) for k, v in registry.items()}
  factory.create_dataset = lambda name, **config: registry[name](
    AddConfig(**config)
  )
  package = types.ModuleType('reasoning_gym')
  package.factory = factory
  monkeypatch.setitem(sys.modules, 'reasoning_gym', package)
  monkeypatch.setitem(sys.modules, 'reasoning_gym.factory', factory)


def questions(split, seed=0, size=40, **config):
  source = adapter.make_source(
    'add', size=size, split=split, seed=seed, **config
  )
  return [adapter.normalize(record['question']) for record in source]


def test_records_and_scores(stand_in):
  source = adapter.make_source('add', size=3, seed=4)
  assert len(source) == 3
  assert [r['task'] for r in source] == ['add'] * 3
  record = source[0]
  a, b = record['metadata']['numbers']
  assert record['question'] == f'What is  {a} + {b}?\n'
  assert record['answer'] == str(a + b)
  assert source.dataset[record['index']]['answer'] == record['answer']
  assert source.score(record['answer'], record) == 1.0
  # What the verifier gives 0.05 and 0.01 is wrong.
  assert source.score(str(a + b + 1), record) == 0.0
  assert source.score('1000', record) == 0.0
  assert source.failures == {}


def test_text_that_a_verifier_chokes_on_is_wrong_and_counted(stand_in):
  source = adapter.make_source('add', size=1)
  assert source.score('seven', source[0]) == 0.0
  assert source.score('', source[0]) == 0.0
  assert source.failures == {'ValueError': 2}
  for answer in (None, 7, b'7', '1' * 10_000):
    assert source.score(answer, source[0]) == 0.0
  # These never reach it.
  assert source.failures == {'ValueError': 2}


def test_splits_share_nothing_whatever_the_seeds(stand_in):
  """Seeds 0 and 1 draw the same stream, one item apart."""
  found = {
    split: set(questions(split, 0)) | set(questions(split, 1, size=60))
    for split in adapter.SPLITS
  }
  for one, other in itertools.combinations(found.values(), 2):
    assert not one & other
  for split, texts in found.items():
    assert {adapter.split_of(text) for text in texts} == {split}
  # Other options too: they only change which problems are drawn.
  assert not set(questions('test', high=30)) & found['train']


def test_no_question_comes_twice(stand_in):
  """Of 5 x 5 questions, and however they are spaced and cased."""
  found = questions('train', size=10, high=5)
  assert len(set(found)) == 10
  assert adapter.normalize(' What\tIS  1?\n') == 'what is 1?'
  assert adapter.split_of('What is 1?') == adapter.split_of('what  is 1?\n')


def test_the_same_source_twice_and_another_seed(stand_in):
  assert questions('test', 3) == questions('test', 3)
  assert questions('test', 3) != questions('test', 90)


def test_shares_of_the_splits():
  """60, 20 and 20 percent of 5000 questions; three standard deviations of
  a share of .2 are .017."""
  found = [adapter.split_of(f'question {i}') for i in range(5000)]
  for split, share in (('train', 0.6), ('validation', 0.2), ('test', 0.2)):
    assert abs(found.count(split) / 5000 - share) < 0.021


def test_a_task_without_an_answer(stand_in):
  source = adapter.make_source('bare', size=1)
  assert source[0]['answer'] is None
  assert source.score('anything', source[0]) == 1.0


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('ad', {}, "no reasoning-gym task 'ad': did you mean add"),
    ('zzzz', {}, r"task 'zzzz': see task_names\(\)"),
    ('add', {'split': 'dev'}, "split 'dev' must be one of"),
    ('add', {'size': 0}, 'size=0 is given; allowed is >= 1'),
    ('add', {'low': 1}, r"with options {'low': 1} \(TypeError: .*low"),
    ('add', {'high': 0}, r'\(AssertionError: high must be positive'),
    ('add', {'high': 2}, 'gave [0-4] different train problems in 350 draws'),
    ('broken', {}, r'failed to make problem 2 \(RuntimeError: no way\)'),
  ],
)
def test_what_cannot_be_made(name, options, message, stand_in):
  with pytest.raises(ValueError, match=message) as error:
    adapter.make_source(name, **{'size': 10} | options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('data', [{}, {'task': ''}, {'task': 5}])
def test_a_task_must_be_named(data, stand_in):
  with pytest.raises(ValueError, match=r'task.data.task=.* set one, such as'):
    text_sources.load_reasoning_gym(None, 'train', **data)


def test_without_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  for call in (adapter.task_names, lambda: adapter.make_source('gcd', size=1)):
    with pytest.raises(ValueError, match=r"pip install 'meta-rl\[tasks\]'"):
      call()


def test_a_verifier_that_wants_tuples_gets_them(stand_in):
  load = functools.partial(
    text_sources.load_reasoning_gym, None, 'train', task='odd', size=4
  )
  assert len(load()) == 4
  with pytest.raises(ValueError, match='scores its own answer .* otherwise'):
    load(high=99)


def test_what_the_verifier_needs_has_room(stand_in):
  kit = make_kit(
    'text',
    source='reasoning_gym',
    data={'task': 'add', 'size': 8, 'high': 10**300},
    tokenizer='bytes',
    verifier='reasoning_gym',
    prompt_length=2048,
    answer_length=512,
  )
  sizes = {
    len(kit.record_arrays(record)['gold'])
    for split in ('train', 'test')
    for record in kit.load_source(None, split)
  }
  assert len(sizes) == 1
  assert min(sizes) > 1000


def test_names_in_order(stand_in):
  names = adapter.task_names()
  assert names == sorted(names)
  assert 'add' in names


# ---- doors that stay shut; the stand-in's verifier would take anything


HOSTILE = [
  "__import__('os').getcwd()",
  '[exit()]',
  "open('x')",
  'x.__class__',
  '1 .real',
  'lambda: 1',
  '"1"',
  '1;2',
  'a_b',
  'os',
  '9**9**9',
  '(9)**99',
  '((x-x+9)**99)**99**9',
  'x**(9999)',
  'x**-999',
  '(((x)**99)**99)**99',
  'x' * 600,
  '\u0661',
  '',
]


@pytest.mark.parametrize('text', HOSTILE)
@pytest.mark.parametrize(
  'name', ['countdown', 'simple_integration', 'n_queens']
)
def test_no_code_reaches_a_verifier_that_would_run_it(text, name, stand_in):
  source = adapter.make_source(name, size=1)
  assert source.score(text, source[0]) == 0.0


@pytest.mark.parametrize(
  'name, text',
  [
    ('countdown', ' (3 + 5) * 7 - 12/4\n'),
    ('simple_integration', 'x**3/3 - 2*x**2 + C'),
    ('simple_integration', '-5*cos(3*x)/3 + exp(2*x) + C'),
    ('simple_integration', '(1 - x**2)**(3/2)*sqrt(x)/0.5'),
    ('polynomial_multiplication', '-12*x**5*y**3 + 47*X - 1000'),
  ],
)
def test_plain_expressions_do(name, text):
  check = scoring.is_algebra
  if name == 'countdown':
    check = scoring.is_arithmetic
  assert check(text)


def test_a_number_too_large_to_raise_to_powers():
  assert not scoring.is_algebra('9' * 40)


def test_what_countdown_does_not_know():
  for text in ('2**3', '7 // 2', '1.5 + 1', '3 × 5', '3+5=8', 'x'):
    assert not scoring.is_arithmetic(text)


class Taking:
  """A verifier that takes anything."""

  def score_answer(self, answer, entry):
    """Returns 1.0."""
    return 1.0


@pytest.mark.parametrize(
  'part', ['countdown', 'simple_integration', 'n_queens']
)
@pytest.mark.parametrize('text', HOSTILE)
def test_a_composite_is_as_safe_as_its_parts(text, part):
  source = adapter.Source('composite', 'test', (), Taking())
  record = {'answer': 'x', 'metadata': {'source_dataset': part}}
  assert source.score(text, record) == 0.0
  record['metadata']['source_dataset'] = 'gcd'
  assert source.score('6', record) == 1.0


def test_puzzle24_needs_the_given_numbers(stand_in):
  """Its verifier takes any four numbers."""
  source = adapter.make_source('puzzle24', size=1)
  record = source[0] | {'metadata': {'numbers': [6, 4, 2, 2]}, 'answer': '24'}
  source.dataset.score_answer = lambda answer, entry: 1.0
  assert source.score('6*4*(2/2)', record) == 1.0
  assert source.score('6*4*1*1', record) == 0.0
  assert source.score('6*4*2', record) == 0.0


def test_nan_is_no_complex_number(stand_in):
  source = adapter.make_source('complex_arithmetic', size=1)
  source.dataset.score_answer = lambda answer, entry: 1.0
  assert source.score('nan', source[0]) == 0.0
  assert source.score('NaN + 2i', source[0]) == 0.0
  assert source.score('1 + 2i', source[0]) == 1.0


def test_exact_tasks_take_every_answer_that_is_accepted():
  source = adapter.Source('n_queens', 'test', (), None)
  record = {'answer': 'Q _\n_ Q', 'metadata': {'valid_answers': ['a', 'b']}}
  assert source.score(' Q _\n_ Q\n', record) == 1.0
  assert source.score('b', record) == 1.0
  assert source.score("['b']", record) == 0.0
  record = {'answer': 'True', 'metadata': {}}
  halting = adapter.Source('game_of_life_halting', 'test', (), None)
  assert halting.score('True', record) == 1.0
  assert halting.score('False', record) == 0.0


# ---- the package itself, where the extra is installed

NO_ANSWER = {
  *('boxnet', 'graph_color', 'propositional_logic', 'rubiks_cube'),
  'rush_hour',
}
# Seconds a problem; composite is made of others and needs options.
SLOW = {'futoshiki', 'intermediate_integration', 'knight_swap', 'sokoban'}
SLOW |= {'zebra_puzzles', 'sudoku', 'composite'}

needs_package = pytest.mark.skipif(
  importlib.util.find_spec('reasoning_gym') is None,
  reason="needs pip install 'meta-rl[tasks]'",
)

REAL = """
import json, pathlib, sys, warnings
warnings.simplefilter('ignore')
from meta_rl.tasks import reasoning_gym as adapter
flag, slow, hostile = pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
found = {}
for name in adapter.task_names():
  if name in slow:
    continue
  source = adapter.make_source(name, size=3, split='test', seed=1)
  known = [r for r in source if r['answer'] is not None]
  own = [source.score(r['answer'], r) for r in known]
  bad = [text for text in hostile if source.score(text, source[0])]
  found[name] = [own, bad, flag.exists()]
print(json.dumps(found))
"""


@pytest.mark.full
@needs_package
def test_a_task_of_the_package_trains(small, tmp_path):
  """Two steps of MRT: graded by its verifier, J of its answers' likelihood."""
  config = small.config(
    'mrt_smollm2_135m',
    'gym,tiny',
    task__data__task='gcd',
    total_steps=2,
    checkpoint__every=2,
    eval__every=2,
    optimizer__warmup_steps=0,
  )
  result = small.run(config, tmp_path / 'run')
  assert result.code == 0, result.err
  assert [row['step'] for row in result.rows] == [1, 2]
  for row in result.rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['verifier/timeout_share'] == row['verifier/error_share'] == 0
    assert row['optimizer/grad_norm'] > 0
  assert 'eval/accuracy' in result.rows[-1]


def test_the_config_of_a_task(stand_in):
  config = mrt_smollm2_135m.get_config('gym,tiny')
  config.task.data.task = 'add'
  check_config.check(config)
  problems = setup_run.load_problems(config, 'train')
  kit = setup_run.task_kit(config)
  arrays = kit.record_arrays(problems[0])
  shown = kit.decode(arrays['prompts'][arrays['prompt_mask']])
  assert problems[0]['question'] in shown
  assert '\nThink step by step, then write </think> and the answer.' in shown
  answer = kit.decode(arrays['answers'][0][arrays['answer_mask'][0]])
  assert answer == f'{problems[0]["accepted"][0]}<|im_end|>'


def test_a_source_without_traces_has_no_warm_start(stand_in):
  config = mrt_smollm2_135m.get_config('gym,sft,tiny')
  config.task.data.task = 'add'
  with pytest.raises(ValueError, match='has no traces to show: take data.sou'):
    sft.make_batches(config)


@pytest.mark.full
@needs_package
def test_every_task_of_the_package(tmp_path):
  """Its own answers are right, hostile ones wrong, and nothing is run."""
  flag = tmp_path / 'ran'
  code = f"__import__('pathlib').Path({str(flag)!r}).touch()"
  hostile = [code, f'[{code}]', f'({code},)', *HOSTILE[:-2], 'nan', '6*4*1*1']
  result = subprocess.run(
    [sys.executable, '-c', REAL, str(flag), json.dumps(sorted(SLOW))]
    + [json.dumps(hostile)],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert result.returncode == 0, result.stderr
  # Some of its tasks print dots while they are made.
  last = result.stdout.splitlines()[-1]
  found = json.loads(last[last.index('{') :])
  assert len(found) > 90
  for name, (own, bad, ran) in found.items():
    assert own == ([] if name in NO_ANSWER else [1.0] * 3), name
    assert bad == [], name
    assert not ran, name
