"""Text tasks: prompts, accepted answers, forced ones, and what grades them."""

import concurrent.futures
import json
import re
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from meta_rl import tasks, text_tokenizer, verifiers
from meta_rl.steps import boundaries
from meta_rl.tasks import text, text_countdown, text_host, verify
from meta_rl.tasks.expressions import expression_table
from meta_rl.verifiers import pool

COUNTDOWN = {'n': 3, 'high': 6, 'ops': '+-', 'max_answers': 4, 'orders': 2}
OPTIONS = {
  'source': 'countdown',
  'data': COUNTDOWN,
  'tokenizer': 'bytes',
  'verifier': 'expression',
  'prompt_length': 128,
  'answer_length': 16,
  'max_answers': 4,
}
WORDS = text_tokenizer.load('bytes')


def make(**changes):
  return tasks.make_kit('text', **(OPTIONS | changes))


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def source(data_dir):
  return make().load_source(data_dir, 'train')


@pytest.fixture
def files(tmp_path):
  """Problems of a user's own."""
  path = tmp_path / 'problems.jsonl'
  rows = [
    {'question': f'What is {a} + {b}?', 'answer': str(a + b)}
    for a in range(10)
    for b in range(12)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return path


def real(arrays, name='prompts'):
  mask = 'prompt_mask' if name == 'prompts' else 'answer_mask'
  return arrays[name][arrays[mask]]


def test_a_prompt_and_its_answers(source):
  kit, record = make(), source[0]
  arrays = kit.record_arrays(record)
  prompt = kit.decode(real(arrays))
  assert prompt == (
    f'<|im_start|>user\n{record["question"]}<|im_end|>\n<|im_start|>assistant\n'
  )
  assert arrays['prompt_mask'][-1]  # padded on the left
  task = kit.make_task()
  for row, answer in enumerate(record['accepted']):
    ids = arrays['answers'][row][arrays['answer_mask'][row]]
    assert kit.decode(ids) == f'{answer}<|im_end|>'
    assert ids[-1] == task.eos_id
  assert arrays['answer_mask'].any(1).sum() == len(record['accepted'])


def test_system_instruction_open_and_template(source):
  kit = make(system='Be brief.', instruction='Think first.', open='<think>\n')
  prompt = kit.decode(real(kit.record_arrays(source[0])))
  assert prompt.startswith('<|im_start|>system\nBe brief.<|im_end|>\n')
  assert prompt.endswith('assistant\n<think>\n')
  assert 'make ' in prompt.split('\nThink first.')[0]
  kit = make(template='none', open='<think>\n')
  prompt = kit.decode(real(kit.record_arrays(source[0])))
  assert prompt == f'{source[0]["question"]}\n<think>\n'


def test_the_checkpoints_own_template(source, monkeypatch):
  own = '[INST]{{ messages[0].content }}[/INST]<think>'
  words = text_tokenizer.TextTokenizer(
    WORDS.tokenizer, WORDS.eos_id, WORDS.pad_id, chat_template=own
  )
  monkeypatch.setattr(text_tokenizer, 'load', lambda path: words)
  kit = make(open='<think>\n', answer_length=17)  # new options: a new kit
  prompt = kit.decode(real(kit.record_arrays(source[0])))
  # The template has opened the thought: it is not opened twice.
  assert prompt == f'[INST]{source[0]["question"]}[/INST]<think>'


def test_spellings_and_another_end(source):
  kit = make(spellings=('{}', ' {}'), answer_end='}', max_answers=8)
  arrays = kit.record_arrays(source[0])
  texts = [
    kit.decode(ids[mask])
    for ids, mask in zip(arrays['answers'], arrays['answer_mask'])
    if mask.any()
  ]
  first = source[0]['accepted'][0]
  assert texts[:2] == [first + '}', f' {first}}}']


def answers_of(texts, length=24):
  ids = np.zeros((len(texts), length), np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, each in enumerate(texts):
    own = WORDS.encode(each)
    ids[row, : len(own)] = own
    mask[row, : len(own)] = True
  return jnp.asarray(ids), jnp.asarray(mask)


def test_the_verifier_is_asked_from_the_device(source):
  record = source[0]
  kit = make()
  gold = kit.record_arrays(record)['gold']
  right = record['accepted'][0]
  texts = [right, f'{right}<|im_end|>', f'{right}+1', '', 'what?', '9**9**9']
  scores = jax.jit(kit.make_task().verify)(
    *answers_of(texts), {'gold': gold[None]}
  )
  np.testing.assert_array_equal(scores, [1, 1, 0, 0, 0, 0])


def test_what_could_not_be_graded_is_counted(source, tmp_path, monkeypatch):
  (tmp_path / 'odd_verifier.py').write_text(
    'import os, time\n'
    'def grade(answer, record):\n'
    "  if 'hang' in answer: time.sleep(60)\n"
    "  if 'die' in answer: os._exit(1)\n"
    '  return 1.0\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  kit = make(verifier='odd_verifier:grade', timeout_s=1.0)
  gold = kit.record_arrays(source[0])['gold'][None]
  texts = ['fine', 'hang', 'die', 'good']
  scores = jax.jit(kit.make_task().verify)(*answers_of(texts), {'gold': gold})
  np.testing.assert_array_equal(scores, [1, 0, 0, 1])
  # As of two processes, the other of which graded 4 answers well, in no time.
  other = np.zeros(len(pool.STATUSES) + 4)
  other[[0, -1]] = 4, 1
  found = kit.metrics(lambda own: own + other)
  assert found['verifier/timeout_share'] == 0.125
  assert found['verifier/crash_share'] == 0.125
  assert 0.5 <= found['time/verify_s'] < 30  # the mean of both
  assert found['verifier/restarts'] >= 2
  assert kit.metrics() == {}  # counted once


def test_axes_of_branches(source):
  """As the sampled prover asks: [B,K+1,M,A] against one problem a row."""
  kit = make()
  golds, wanted = [], []
  ids = np.zeros((2, 3, 4, 24), np.int32)
  mask = np.zeros(ids.shape, bool)
  for row in range(2):
    golds.append(kit.record_arrays(source[row])['gold'])
    own = answers_of([source[row]['accepted'][0]])
    ids[row, 1, 2], mask[row, 1, 2] = own[0][0], own[1][0]
    ids[row, 2, 0], mask[row, 2, 0] = answers_of(['1'])[0], True
    wanted.append((row, 1, 2))
  batch = {'gold': np.stack(golds)[:, None, None]}
  scores = jax.jit(kit.make_task().verify)(ids, mask, batch)
  assert scores.shape == (2, 3, 4)
  assert [tuple(i) for i in np.argwhere(np.asarray(scores) == 1)] == wanted


def test_a_forced_prefix_is_part_of_the_answer(files, data_dir):
  kit = make(
    source='files',
    data={'path': str(files)},
    verifier='integer',
    stop='</think>\n',
    answer_prefix='\\boxed{',
    answer_end='}',
  )
  record = kit.load_source(data_dir, 'test')[0]
  task = kit.make_task()
  assert kit.decode(task.stop_ids) == '</think>\n\\boxed{'
  gold = kit.record_arrays(record)['gold'][None]
  answer = record['accepted'][0]
  texts = [
    f'{answer}}}',  # behind the prefix
    f'So it is \\boxed{{{answer}}}.',  # of a thought that ended by itself
    '1234}',
    f'{answer} \\boxed{{',
  ]
  scores = jax.jit(task.verify)(*answers_of(texts, 32), {'gold': gold})
  np.testing.assert_array_equal(scores, [1, 1, 0, 0])


def test_what_comes_behind_a_stop_string_is_not_graded(files, data_dir):
  kit = make(
    source='files',
    data={'path': str(files)},
    verifier='text',
    stop_strings=('\nUser:',),
  )
  record = kit.load_source(data_dir, 'train')[0]
  gold = kit.record_arrays(record)['gold'][None]
  texts = [f'{record["accepted"][0]}\nUser: more?', '\nUser: 1']
  scores = jax.jit(kit.make_task().verify)(*answers_of(texts), {'gold': gold})
  np.testing.assert_array_equal(scores, [1, 0])


def test_splits_share_no_problem(data_dir, files):
  for options in ({}, {'source': 'files', 'data': {'path': str(files)}}):
    kit = make(**options)
    keys = [
      {kit.cluster_key(r) for r in kit.load_source(data_dir, split)}
      for split in ('train', 'validation', 'test')
    ]
    assert all(keys)
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]


def test_traces_are_those_of_the_token_task(source):
  kit = make()
  task = kit.make_task()
  rng = np.random.default_rng(0)
  drawn = kit.sample_traces(
    source, rng, 32, ordinary_episodes=3, max_episodes=5, long_share=0.3
  )
  longest = kit.max_trace_length(source, max_episodes=5)
  verdicts = set()
  for tokens, start in drawn:
    assert len(tokens) <= longest
    assert tokens[-1] == task.eos_id
    assert (tokens == task.think_end_id).sum() == 1
    response = kit.decode(tokens[start:]).removesuffix('<|im_end|>')
    thought, answer = response.split('</think>')
    prompt = kit.decode(tokens[:start])
    numbers = json.loads(f'[{prompt.split("each of ")[1].split(" once")[0]}]')
    target = int(prompt.split('make ')[1].split('.')[0])
    for line in thought.splitlines():
      steps, _, verdict = line.rpartition(' ')
      verdicts.add(verdict)
      value = None
      for step in steps.split(','):
        left, value = step.split('=')
        assert verify.expression.value(verify.expression.tokenize(left)) == int(
          value
        )
      assert (verdict == 'yes') == (int(value) == target)
    used = [t for t in verify.expression.tokenize(answer) if t.isdigit()]
    assert sorted(map(int, used)) == sorted(numbers)
  assert verdicts == {'yes', 'no'}


def test_compact_text_has_the_value_of_its_tokens():
  table = expression_table((2, 3, 4, 6), '+-*/', 99)
  assert len(table.plain) > 500
  for tokens, value in zip(table.plain[::7], table.values[::7]):
    shown = verify.render_compact(tokens)
    assert verify.expression.value(verify.expression.tokenize(shown)) == value
  assert len({verify.render_compact(t) for t in table.plain}) == len(
    table.plain
  )


def test_an_attempt_shows_its_steps():
  # 7 5 + 12 3 - 9 yes ;
  words = text_countdown.tokenizer.encode('7 5 + 12 3 - 9 yes ; 7 5 3 + 8 - -')
  assert next(text_countdown.attempts(np.array(words))) == '7+5=12,12-3=9 yes'


def test_a_vote_is_the_value(source):
  kit = make()
  assert kit.vote(WORDS.encode('3+(4-1)<|im_end|>')) == 6
  assert kit.vote(WORDS.encode('4+3-1')) == 6
  assert kit.vote(WORDS.encode('4+')) is None


def test_episodes_of_open_ended_text():
  kit = make(segments={'min_paragraphs': 1})
  thought = 'First.\n\nSo 3.\n\nWait, no.\n\nWait, yes.'
  ids = WORDS.encode('ab' + thought + '</think>')
  tokens = np.asarray([ids])
  start, end = 2, 2 + len(thought)
  mask = (np.arange(len(ids)) >= start) & (np.arange(len(ids)) < end)
  traces = types.SimpleNamespace(
    tokens=jnp.asarray(tokens), thinking_mask=jnp.asarray(mask[None])
  )
  find = jax.jit(
    lambda tokens, mask: boundaries.find_boundaries(
      types.SimpleNamespace(tokens=tokens, thinking_mask=mask),
      start=1,
      delimiter_ids=(),
      max_episodes=4,
      boundaries='text',
      segment=kit.make_task().segment,
    )
  )
  found, stop_index, inside = find(traces.tokens, traces.thinking_mask)
  assert found.count.tolist() == [3]
  cuts = [
    WORDS.decode(ids[a + 1 : b + 1])
    for a, b in zip(found.ends[0, :3].tolist(), found.ends[0, 1:4].tolist())
  ]
  assert ''.join(cuts) == thought
  assert cuts[1].strip() == 'Wait, no.'
  assert stop_index.tolist() == [end]
  assert inside.tolist() == [True]
  with pytest.raises(ValueError, match='which this task is not'):
    boundaries.find_boundaries(
      traces,
      start=1,
      delimiter_ids=(),
      max_episodes=4,
      boundaries='text',
    )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'colour': 3}, r"unknown options \['colour'\]"),
    ({'source': ''}, 'source is missing'),
    ({'source': 'web'}, 'source must be one of'),
    ({'delimiter': 'word'}, 'delimiter must be one of'),
    ({'template': 'x'}, 'template must be one of'),
    ({'stop': 'now'}, r"stop='now' lacks close='</think>'"),
    ({'close': 'the end', 'stop': 'the end'}, "'the end' is 7 tokens"),
    ({'tokenizer': '/none'}, 'neither a folder nor a .gguf'),
    ({'prompt_length': 0}, 'prompt_length must be a whole number'),
    ({'timeout_s': 0}, 'timeout_s must be > 0'),
    (
      {'spellings': ['{}', ' {}'], 'max_answers': 1},
      'spellings has 2 texts and max_answers=1 would leave some out: raise',
    ),
  ],
)
def test_options_that_cannot_be_used(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_what_does_not_fit_is_named(source):
  for changes, message in (
    ({'prompt_length': 8}, 'task.prompt_length=8: the prompt of .* tokens'),
    ({'answer_length': 3}, 'task.answer_length=3: the accepted answer'),
    ({'gold_bytes': 4}, 'task.gold_bytes=4'),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes).record_arrays(source[0])


def test_a_tokenizer_of_a_folder(tmp_path):
  WORDS.tokenizer.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(ValueError, match='does not say which token ends'):
    text_tokenizer.load(str(tmp_path))
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps(
      {
        'eos_token': {'content': '<eos>'},
        'bos_token': '<pad>',
        'add_bos_token': True,
        'chat_template': [{'name': 'default', 'template': 'T'}],
      }
    )
  )
  found = text_tokenizer.load(str(tmp_path))
  assert found.eos_id == WORDS.tokenizer.token_to_id('<eos>')
  assert found.bos_id is None  # its tokenizer adds none
  assert found.special['bos_token'] == '<pad>'
  assert found.chat_template == 'T'
  assert found.decode(found.encode('a\né😀')) == 'a\né😀'
  text_tokenizer.load.cache_clear()
  (tmp_path / 'tokenizer.json').write_text('{')
  with pytest.raises(ValueError, match='cannot be read'):
    text_tokenizer.load(str(tmp_path))


def folder_of(path, **settings):
  """Writes the byte tokenizer as a checkpoint's, and returns its folder."""
  path.mkdir(exist_ok=True)
  WORDS.tokenizer.save(str(path / 'tokenizer.json'))
  settings = {'eos_token': '<|im_end|>', 'pad_token': '<pad>'} | settings
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return str(path)


@pytest.mark.parametrize(
  'settings',
  [
    {
      'truncation': {
        'direction': 'Right',
        'max_length': 8,
        'strategy': 'LongestFirst',
        'stride': 0,
      }
    },
    {
      'padding': {
        'strategy': {'Fixed': 64},
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<pad>',
      }
    },
  ],
)
def test_no_text_is_cut_or_filled_as_tokenizer_json_says(settings, tmp_path):
  folder = folder_of(tmp_path / 'own')
  path = tmp_path / 'own' / 'tokenizer.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  words = text_tokenizer.load(folder)
  assert len(words.encode('x' * 20)) == 20
  assert words.id_of('</think>') == WORDS.id_of('</think>')


def test_a_vocabulary_with_gaps_is_decoded():
  own = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'a': 0, 'b': 1, 'c': 5, 'e': 9}, unk_token='a')
  )
  words = text_tokenizer.TextTokenizer(own, eos_id=9, pad_id=0)
  assert words.decode([1, 5, 7, -1, 9, 12]).split() == ['b', 'c', 'e']


@pytest.mark.parametrize(
  'spelling, message',
  [
    ('\\boxed{}', r'would run .*boxed and the answer together'),
    ('42', "must have '{}' once"),
    ('{} or {}', "must have '{}' once"),
    ('{{{}}}', 'not doubled'),
    ('{answer}', "must have '{}' once"),
  ],
)
def test_a_spelling_without_its_answer_is_refused(spelling, message):
  with pytest.raises(ValueError, match=message):
    make(spellings=('{}', spelling))


def test_a_spelling_in_braces_has_the_answer(source):
  kit = make(spellings=('\\boxed{{}}',), answer_length=32)
  arrays = kit.record_arrays(source[0])
  shown = kit.decode(arrays['answers'][0][arrays['answer_mask'][0]])
  assert shown == f'\\boxed{{{source[0]["accepted"][0]}}}<|im_end|>'
  with pytest.raises(ValueError, match='give a list of texts'):
    make(spellings='{}')


def test_prompts_do_not_change_with_the_day(source, tmp_path):
  pytest.importorskip('jinja2')
  template = (
    '{{ strftime_now("%d %b %Y") }}: {{ messages[0].content }}'
    '{% if add_generation_prompt %}!{% endif %}'
  )
  folder = folder_of(tmp_path / 'own', chat_template=template)
  prompt = lambda **more: (kit := make(tokenizer=folder, **more)).decode(
    real(kit.record_arrays(source[0]))
  )
  assert prompt().startswith('26 Jul 2024: Use each of')
  assert prompt(date='2025-01-02').startswith('02 Jan 2025: Use each of')
  with pytest.raises(ValueError, match="date='today' is no day"):
    make(date='today')


def test_a_checkpoint_without_a_template_is_refused(source, tmp_path):
  folder = folder_of(tmp_path / 'base')
  with pytest.raises(ValueError, match="template='chatml' or 'none'"):
    make(tokenizer=folder)
  kit = make(tokenizer=folder, template='chatml', system='Be brief.')
  assert kit.decode(real(kit.record_arrays(source[0]))) == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n'
    f'{source[0]["question"]}<|im_end|>\n<|im_start|>assistant\n'
  )


@pytest.mark.parametrize(
  'verifier, prefix, texts, votes',
  [
    (
      'integer',
      '',
      ['So 40+2. \\boxed{42}', 'Thus \\boxed{042}', 'none at all'],
      ['42', '42', None],
    ),
    ('integer', '\\boxed{', ['42}', 'So it is \\boxed{42}.'], ['42', '42']),
    ('text', '', ['Answer: Yes.', 'the answer is "yes"', ' '], ['yes'] * 2),
    ('expression', '', ['3+(4-1)', '#### 6', '4+'], [6, 6, None]),
    ('own_verifier:grade', '', ['Answer:  a  b', '', 'a b'], ['a b', None]),
    ('own_verifier_too:grade', '', ['a', 'bb'], [1, 2]),
  ],
)
def test_a_vote_is_the_answer_as_its_verifier_reads_it(
  verifier, prefix, texts, votes, tmp_path, monkeypatch
):
  own = 'def grade(answer, record):\n  return 1.0\n'
  (tmp_path / 'own_verifier.py').write_text(own)
  (tmp_path / 'own_verifier_too.py').write_text(own + 'vote = len\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  kit = make(verifier=verifier, answer_prefix=prefix)
  found = [kit.vote(WORDS.encode(text)) for text in texts]
  assert found[: len(votes)] == votes


@pytest.mark.parametrize(
  'verifier, message',
  [('no_such_verifier', 'must be one of'), ('json:none', 'has no function')],
)
def test_a_wrong_verifier_is_refused_before_anything_is_made(verifier, message):
  with pytest.raises(ValueError, match=message):
    make(verifier=verifier)


def test_one_long_problem_is_found_before_the_run(tmp_path, data_dir):
  rows = [
    {'question': f'What is {i} + {i}?', 'answer': str(2 * i)} for i in range(99)
  ]
  rows[40]['question'] += ' Think' * 40
  path = tmp_path / 'problems.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  kit = make(source='files', data={'path': str(path)}, verifier='integer')
  message = (
    r'problem \d+ of \w+: task.prompt_length=128: the prompt of '
    r"'What is 40 \+ 40\? .*' has \d+ tokens; raise it or leave it out; 1 of "
    r'\d+ are too long, the longest has \d+'
  )
  lines = []
  for split in ('train', 'validation', 'test'):
    try:
      kit.load_source(data_dir, split)
    except ValueError as error:
      lines.append(str(error))
  assert len(lines) == 1  # it belongs to one split
  assert re.fullmatch(message, lines[0])


def test_no_accepted_answer_is_left_out_in_silence(data_dir):
  # Exact J would be that of the answers which are left.
  kit = make(max_answers=2)
  message = (
    r'task.max_answers=2 leaves accepted answers of \d+ of \d+ problems of '
    'train out: exact J is a lower bound there; set task.max_answers=4'
  )
  with pytest.warns(UserWarning, match=message):
    kit.load_source(data_dir, 'train')


def test_an_answer_that_its_verifier_cannot_use(tmp_path, data_dir):
  rows = [
    {'question': f'What is {i} + {i}?', 'answer': str(2 * i)} for i in range(99)
  ]
  for row in rows[40:42]:
    row['answer'] = 'it is about 0'
  for split in ('train', 'validation', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(
      '\n'.join(
        json.dumps({**row, 'question': f'{split}: {row["question"]}'})
        for row in (rows if split == 'train' else rows[:9])
      )
    )
  kit = make(source='files', data={'path': str(tmp_path)}, verifier='integer')
  assert len(kit.load_source(data_dir, 'test')) == 9
  message = (
    r"problem 41 of train, 'train: What is 40 \+ 40\?': the right answer 'it "
    r"is about 0' is no integer, which task.verifier='integer' needs: mend it, "
    r'leave it out, or take another verifier; 2 of 99 are such'
  )
  with pytest.raises(ValueError, match=f'^{message}$'):
    kit.load_source(data_dir, 'train')


def test_a_verifier_of_other_problems(data_dir):
  with pytest.raises(ValueError, match="it has no 'answer', which task.verif"):
    make(verifier='integer').load_source(data_dir, 'train')


def test_one_pool_for_all_devices(monkeypatch):
  made = []

  class Slow(text_host.pool.Pool):
    def __init__(self, *args, **options):
      made.append(1)
      time.sleep(0.2)
      super().__init__(*args, **options)

  monkeypatch.setattr(text_host.pool, 'Pool', Slow)
  grader = text_host.Grader('integer', workers=1)
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    asked = [[(str(i), b'{"answer":"1"}')] for i in range(4)]
    assert list(threads.map(grader, asked)) == [[0.0], [1.0], [0.0], [0.0]]
  assert len(made) == 1


@pytest.fixture
def graded(monkeypatch):
  """The texts that a pool was asked for, call by call; `go` lets it begin."""
  calls = types.SimpleNamespace(texts=[], go=threading.Event())
  calls.go.set()

  class Noted(text_host.pool.Pool):
    def grade(self, answers, records):
      assert calls.go.wait(60)
      calls.texts += answers
      return super().grade(answers, records)

  monkeypatch.setattr(text_host.pool, 'Pool', Noted)
  return calls


def test_what_is_begun_with_is_graded_once(graded):
  graded.go.clear()
  grader = text_host.Grader('integer', workers=1)
  gold = b'{"answer":"1"}'
  grader.begin(lambda: [('1', gold), ('2', gold)])
  grader.begin(lambda: [('1', gold), ('3', gold)])
  assert not graded.texts  # neither is waited for
  graded.go.set()
  assert grader([('3', gold), ('1', gold), ('4', gold)]) == [0.0, 1.0, 0.0]
  assert grader([('2', gold), ('1', gold)]) == [0.0, 1.0]
  assert sorted(graded.texts) == ['1', '2', '3', '4']
  assert grader.metrics()['time/verify_wait_s'] > 0
  assert grader([('1', gold)]) == [1.0]  # known for one step more
  assert len(graded.texts) == 4
  grader.metrics()
  grader.metrics()
  assert grader([('1', gold)]) == [1.0]
  assert graded.texts[4:] == ['1']


def test_not_all_grades_are_kept(graded, monkeypatch):
  monkeypatch.setattr(text_host, '_MOST_KNOWN', 2)
  grader = text_host.Grader('integer', workers=1)
  asked = lambda *texts: grader([(x, b'{"answer":"1"}') for x in texts])
  assert asked('1', '2', '3') == [1.0, 0.0, 0.0]
  assert asked('3', '4', '5', '1', '6') == [0.0, 0.0, 0.0, 1.0, 0.0]
  assert graded.texts == ['1', '2', '3', '4', '5', '6']
  assert asked('1', '2') == [1.0, 0.0]
  assert graded.texts[6:] == ['2']  # of the first call alone


def test_a_grade_that_failed_is_tried_again_in_the_next_step(
  graded, tmp_path, monkeypatch
):
  (tmp_path / 'mended_verifier.py').write_text(
    'import pathlib\n'
    'def grade(answer, record):\n'
    "  if answer == 'bad' and not pathlib.Path(record['path']).exists():\n"
    "    raise RuntimeError('not yet')\n"
    '  return 1.0\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  grader = text_host.Grader('mended_verifier:grade', workers=1)
  record = text_host.to_json({'path': str(tmp_path / 'there')})
  asked = [('bad', record), ('good', record)]
  assert grader(asked) == [0.0, 1.0]
  (tmp_path / 'there').touch()
  assert grader(asked) == [0.0, 1.0]  # not asked again within a step
  assert grader.metrics()['verifier/error_share'] == 0.5
  assert grader(asked) == [1.0, 1.0]
  assert graded.texts == ['bad', 'good', 'bad']


def test_what_fails_ahead_is_said_when_it_is_asked(monkeypatch):
  started = []

  class Broken:
    def __init__(self, **options):
      started.append(options)
      raise verifiers.VerifierError('no such thing')

  monkeypatch.setattr(text_host.pool, 'Pool', Broken)
  grader = text_host.Grader('integer')
  grader.begin(lambda: [('1', b'{}')])
  while grader._error is None:
    time.sleep(0.01)
  grader.begin(lambda: [('2', b'{}')])  # not tried again
  with pytest.raises(verifiers.VerifierError, match='no such thing'):
    grader([('1', b'{}')])
  assert len(started) == 1
  with pytest.raises(verifiers.VerifierError, match='no such thing'):
    grader([('1', b'{}')])  # tried again: it may have been mended
  assert len(started) == 2


def test_begin_on_the_device(source, graded):
  kit = make()
  task = kit.make_task()
  gold = kit.record_arrays(source[0])['gold']
  right = source[0]['accepted'][0]
  asked = *answers_of([right, '1', '']), {'gold': gold[None]}
  zeros = jax.jit(task.verify.begin)(*asked)
  np.testing.assert_array_equal(zeros, [0, 0, 0])
  assert zeros.dtype == np.int32
  scores = jax.jit(task.verify)(*asked)
  np.testing.assert_array_equal(scores, [1, 0, 0])
  assert sorted(graded.texts) == sorted([right, '1'])  # once each


ENDED = """
import jax
from meta_rl.tasks import text_host

grader = text_host.Grader('slow_one:grade', workers=1, timeout_s=100.0)
grader.begin(lambda: [('1', b'{}')])
while grader._pool is None:
  pass
"""


def test_no_end_waits_for_what_was_begun(run_python, root, tmp_path):
  (tmp_path / 'slow_one.py').write_text(
    'import time\ndef grade(answer, record): time.sleep(90)\n'
  )
  began = time.monotonic()
  run_python(ENDED, env={'PYTHONPATH': f'{root}:{tmp_path}'})
  assert time.monotonic() - began < 60


def test_what_a_verifier_is_told_keeps_its_tuples():
  value = {'board': ((1, 2), (3, 4)), 'names': ['a', ('b',)], 'empty': ()}
  data = text_host.to_json(value)
  assert text_host.from_json(data + b'\0\0') == value
  with pytest.raises(ValueError, match='is no JSON'):
    text_host.to_json({'x': {1, 2}})


def test_a_stop_whose_marker_is_lost_in_its_text(tmp_path):
  """Of a vocabulary in which the marker is part of another token."""
  vocabulary = WORDS.tokenizer.get_vocab() | {'##': 300, '#!': 301}
  own = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocabulary, [('#', '!'), ('#', '#')])
  )
  own.pre_tokenizer = WORDS.tokenizer.pre_tokenizer
  own.decoder = WORDS.tokenizer.decoder
  own.save(str(tmp_path / 'tokenizer.json'))
  settings = {'eos_token': '!', 'chat_template': '{{ messages[0].content }}'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  options = {'tokenizer': str(tmp_path), 'close': '##'}
  make(stop='##', **options)
  with pytest.raises(ValueError, match='is another token than alone'):
    make(stop='##!', **options)


def test_chatml():
  turns = [{'role': 'user', 'content': 'a'}]
  assert text.chatml(turns) == (
    '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n'
  )


def test_a_stop_string_ends_a_trace_on_the_device(files):
  own = {'source': 'files', 'data': {'path': str(files)}, 'verifier': 'text'}
  assert make(**own).make_task().stop_table is None
  task = make(**own, stop_strings=('\nUser:',)).make_task()
  ids = text_tokenizer.load('bytes').encode('42\nUser: more?')
  state = jnp.zeros((), jnp.int32)
  states = [state := task.stop_table.step(state, jnp.asarray(i)) for i in ids]
  assert states.index(task.stop_table.complete) == len('42\nUser:') - 1
  assert hash(task) == hash(make(**own, stop_strings=('\nUser:',)).make_task())


def test_a_turn_ends_with_what_its_template_says(source, tmp_path):
  """As Gemma's: the tokenizer's own end of text is another."""
  pytest.importorskip('jinja2')
  template = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}"
    '{% endfor %}'
  )
  folder = folder_of(
    tmp_path / 'own', eos_token='<eos>', chat_template=template
  )
  eos, turn = WORDS.id_of('<eos>'), WORDS.id_of('<|im_end|>')
  ends = json.dumps({'eos_token_id': [eos, turn]})
  (tmp_path / 'own' / 'generation_config.json').write_text(ends)
  words = text_tokenizer.load(folder)
  assert (words.eos_id, words.end_ids) == (turn, (eos,))
  assert words.special['eos_token'] == '<eos>'
  kit = make(tokenizer=folder)
  arrays, task = kit.record_arrays(source[0]), kit.make_task()
  assert arrays['answers'][0][arrays['answer_mask'][0]][-1] == turn
  assert (task.eos_id, task.stop_table.end_ids) == (turn, (eos,))
  assert task.end_ids == (turn, eos)
  state = task.stop_table.step(jnp.zeros((), jnp.int32), jnp.asarray(eos))
  assert state == task.stop_table.complete
