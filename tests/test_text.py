"""Text tasks: prompts, accepted answers, forced ones, and what grades them."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_rl import tasks, text_tokenizer
from meta_rl.steps import boundaries
from meta_rl.tasks import text, text_countdown, verify
from meta_rl.tasks.expressions import expression_table

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
  found = kit.metrics()
  assert found['verifier/timeout_share'] == 0.25
  assert found['verifier/crash_share'] == 0.25
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
