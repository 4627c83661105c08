"""A policy's tokens as text: prompts, defaults, what is said while it comes."""

import dataclasses
import math
import types

import jax
import pytest
import serving
from ml_collections import config_dict

from meta_rl import chat_template, stop_rules, text_tokenizer
from meta_rl.configs import mrt_countdown, mrt_hidden
from meta_rl.serving import openai_api, ticks, voices
from meta_rl.serving.slots import Marks
from meta_rl.serving.tickets import Piece, Usage
from meta_rl.serving.writer import Writer

WORDS = text_tokenizer.load('bytes')
CLOSE = WORDS.id_of('</think>')
TURNS = [{'role': 'user', 'content': 'Hi'}]
KINDS = {
  't': ticks.THOUGHT,
  'm': ticks.MARKER,
  'f': ticks.FORCED,
  'a': ticks.ANSWER,
}


def of_text(**changes):
  """Returns a voice of bytes."""
  marks = Marks((WORDS.eos_id,), CLOSE, (CLOSE,))
  voice = voices.Voice(
    model=None,
    params=None,
    marks=marks,
    chat_prompt=lambda turns: WORDS.encode(turns[-1]['content']),
    text_prompt=WORDS.encode,
    decode=WORDS.decode,
    vocab_size=262,
    defaults={
      'max_new_tokens': 40,
      'temperature': 0.7,
      'top_p': 1.0,
      'thinking_budget': 20,
      'every': 8,
    },
  )
  return dataclasses.replace(voice, **changes)


def piece(*parts, finish=''):
  """Returns a piece of (kind, text or ids)."""
  tokens, kinds = [], []
  for kind, ids in parts:
    ids = WORDS.encode(ids) if isinstance(ids, str) else ids
    tokens += ids
    kinds += [KINDS[kind]] * len(ids)
  return Piece(tokens, kinds, [], finish, Usage())


def written(pieces, *, stop=(), joined=False, voice=None):
  """Returns the (thought, answer) of each piece, and the writer."""
  writer = Writer(voice or of_text(), stop, joined=joined)
  return [writer.write(one) for one in pieces], writer


def test_a_thought_and_its_answer_are_kept_apart():
  found, _ = written(
    [
      piece(('t', 'hm')),
      piece(('t', '!'), ('m', '</think>'), ('a', 'y')),
      piece(('a', 'es<|im_end|>'), finish='stop'),
    ]
  )
  assert found == [('hm', ''), ('!', 'y'), ('', 'es')]


def test_a_completion_is_one_text():
  found, _ = written(
    [
      piece(('t', 'hm'), ('m', '</think>'), ('a', 'y')),
      piece(('a', '<|im_end|>'), finish='stop'),
    ],
    joined=True,
  )
  assert found == [('', 'hm</think>y'), ('', '')]


def test_what_is_forced_belongs_to_the_side_of_the_marker_it_is_on():
  found, _ = written([piece(('t', 'h'), ('f', '\nnow</think>So '), ('a', '7'))])
  assert found == [('h\nnow', 'So 7')]


def test_a_marker_in_an_answer_is_text():
  found, _ = written([piece(('m', '</think>'), ('a', 'a</think>b'))])
  assert found == [('', 'a</think>b')]


def test_without_a_marker_all_is_answer():
  voice = of_text(marks=Marks((WORDS.eos_id,)))
  found, _ = written([piece(('a', 'hm</think>'))], voice=voice)
  assert found == [('', 'hm</think>')]


def test_half_a_character_waits():
  ids = WORDS.encode('aé🙂')  # 1 + 2 + 4 bytes
  found, _ = written([piece(('a', [i])) for i in ids])
  assert [answer for _, answer in found] == ['a', '', 'é', '', '', '', '🙂']
  found, _ = written([piece(('a', ids[:2]), finish='length')])
  assert found == [('', 'a\ufffd')]
  # The end of a thought is no reason to drop its half character.
  found, _ = written(
    [piece(('t', ids[:2])), piece(('m', '</think>'), finish='length')]
  )
  assert ''.join(thought for thought, _ in found) == 'a\ufffd'


@pytest.mark.parametrize('size', [1, 2, 5])
def test_stop_strings_of_answers(size):
  text = 'ab ENenEND more'
  pieces = [piece(('a', text[i : i + size])) for i in range(0, len(text), size)]
  pieces = [piece(('t', 'END'), ('m', '</think>')), *pieces]
  found, writer = written(pieces, stop=['END', 'never'])
  assert ''.join(answer for _, answer in found) == 'ab ENen'
  assert writer.ended
  assert found[0] == ('END', '')  # in a thought it ends nothing


def test_what_may_begin_a_stop_string_is_held_back():
  found, writer = written(
    [
      piece(('a', 'xE')),
      piece(('a', 'N')),
      piece(('a', 'O')),
      piece(('a', 'E')),
    ],
    stop=['END'],
  )
  assert [answer for _, answer in found] == ['x', '', 'ENO', '']
  assert not writer.ended
  found, _ = written([piece(('a', 'xEN'), finish='length')], stop=['END'])
  assert found == [('', 'xEN')]


def test_words_are_joined_as_in_one_text():
  """Words with spaces between: of one decoder each side."""
  config = mrt_countdown.get_config('tiny')
  voice = voices.of_policy(config, {})
  ids = voice.text_prompt
  steps = [('t', '3 5 +'), ('t', '8 no'), ('m', '</think>'), ('a', '3 5')]
  steps += [('a', '- <eos>')]
  pieces = [piece((kind, ids(text))) for kind, text in steps]
  found, _ = written(pieces, voice=voice)
  assert ''.join(thought for thought, _ in found) == '3 5 + 8 no'
  assert ''.join(answer for _, answer in found) == '3 5 -'
  found, _ = written(pieces, voice=voice, joined=True)
  text = ''.join(answer for _, answer in found)
  assert text == '3 5 + 8 no </think> 3 5 -'


def ask(**changes):
  body = {'model': 'm', 'messages': TURNS} | changes
  return openai_api.chat(body, 'm')


def asked(voice=None, length=100, prompt=(1, 2), **changes):
  return voices.request(voice or of_text(), prompt, length, ask(**changes))


def test_defaults_fill_in_what_is_left_out():
  found = asked(seed=3)
  assert found.max_new_tokens == 40
  assert (found.temperature, found.top_p, found.seed) == (0.7, 1.0, 3)
  assert (found.thinking_budget, found.min_thinking) == (20, 0)
  assert (found.rule, found.every) == ('budget', 8)
  assert not found.greedy_answer


def test_what_is_given_stands():
  found = asked(
    max_tokens=9, temperature=0, top_p=0.5, max_thinking_tokens=3, check_every=0
  )
  assert (found.max_new_tokens, found.temperature) == (9, 0.0)
  assert (found.top_p, found.thinking_budget, found.every) == (0.5, 3, 0)


def test_draws_differ_without_a_seed():
  assert len({asked().seed for _ in range(8)}) > 1


def test_defaults_give_way_to_the_room():
  assert asked(length=30).max_new_tokens == 29  # 31 tokens less the prompt
  voice = of_text(context=20)
  assert asked(voice).max_new_tokens == 18
  # 12 tokens: the default thought leaves a stop token and an answer.
  assert asked(max_tokens=12).thinking_budget == 10
  assert asked(max_tokens=1).thinking_budget is None
  with pytest.raises(ValueError, match='was made for 20 in all'):
    asked(voice, max_tokens=19)


def test_rules_and_their_thresholds():
  found = asked(stop_rule='agreement', stop_threshold=2)
  assert (found.rule, found.threshold) == ('agreement', 2)
  assert found.greedy_answer
  with pytest.raises(ValueError, match="'progress' needs price_per_token"):
    asked(stop_rule='progress')
  with pytest.raises(ValueError, match="'confidence' needs stop_threshold"):
    asked(stop_rule='confidence')
  looks = asked(return_confidence=True)
  assert (looks.rule, looks.threshold) == ('confidence', math.inf)
  assert not looks.greedy_answer  # the response is that of the budget
  looks = asked(return_confidence=True, stop_rule='progress')
  assert (looks.rule, looks.threshold) == ('progress', -math.inf)
  found = asked(stop_rule='agreement', stop_threshold=2, greedy_answer=False)
  assert not found.greedy_answer


def test_calibrated_thresholds():
  choice = {'rule': 'agreement', 'mode': 'own', 'threshold': 3.0}
  none = {'rule': 'confidence', 'mode': 'own', 'threshold': None}
  rules = stop_rules.StopRules(
    {}, [choice, none], {'alpha': 0.01, 'max_looks': 5}
  )
  voice = of_text(rules=rules)
  assert voice.head is None
  calibrated = asked(voice, stop_rule='agreement')
  assert (calibrated.threshold, calibrated.max_looks) == (3.0, 5)
  given = asked(voice, stop_rule='agreement', stop_threshold=2, check_every=4)
  assert (given.threshold, given.max_looks, given.every) == (2, None, 4)
  with pytest.raises(ValueError, match='check_every=4 .* give stop_threshold'):
    asked(voice, stop_rule='agreement', check_every=4)
  found = asked(voice, stop_rule='agreement', return_confidence=True)
  assert found.threshold == 3.0
  looks = asked(voice, stop_rule='confidence', return_confidence=True)
  assert looks.threshold == math.inf
  with pytest.raises(ValueError, match='no threshold was shown'):
    asked(voice, stop_rule='confidence')
  with pytest.raises(ValueError, match=r"'progress' \(own\) was not calib"):
    asked(voice, stop_rule='progress')


def test_prompts():
  voice = of_text()
  assert voices.encode(voice, 'Hi') == tuple(WORDS.encode('Hi'))
  assert voices.encode(voice, TURNS) == tuple(WORDS.encode('Hi'))
  assert voices.encode(voice, [5, 261]) == (5, 261)
  with pytest.raises(ValueError, match=r'ids outside 0\.\.261'):
    voices.encode(voice, [262])
  short = of_text(vocab_size=100)
  with pytest.raises(ValueError, match='which the model does not know'):
    voices.encode(short, 'Hi\xff')
  with pytest.raises(ValueError, match='no tokens'):
    voices.encode(voice, '')
  with pytest.raises(ValueError, match='cannot be tokenized'):
    voices.encode(voice, '\ud800')


def test_prompts_that_are_too_long_are_not_tokenized():
  def never(_):
    raise ValueError('tokenized')

  voice = of_text(text_prompt=never, chat_prompt=never)
  with pytest.raises(ValueError, match='has 641 characters, .* have 10 tokens'):
    voices.encode(voice, 'x' * 641, 10)
  with pytest.raises(ValueError, match='tokenized'):
    voices.encode(voice, 'x' * 640, 10)
  turns = [{'role': 'user', 'content': ''}]
  with pytest.raises(ValueError, match='704 characters and turns'):
    voices.encode(voice, turns * 11, 10)
  with pytest.raises(ValueError, match='has 11 tokens, .* have 10 tokens'):
    voices.encode(voice, [5] * 11, 10)
  assert voices.encode(voice, [5] * 10, 10) == (5,) * 10


def test_a_token_policy():
  config = mrt_countdown.get_config('tiny')
  voice = voices.of_policy(config, {})
  prompt = '<bos> 3 5 7 = 15 <think>'
  ids = voices.encode(voice, [{'role': 'user', 'content': prompt}])
  assert voice.decode(ids) == prompt
  # A budget of 27, one stop token, answers of 5 and an end.
  assert voice.defaults['max_new_tokens'] == 27 + 1 + 6
  with pytest.raises(ValueError, match='has no conversations; give one'):
    voices.encode(voice, TURNS * 2)
  with pytest.raises(ValueError, match="'Hi' is not one of the"):
    voices.encode(voice, TURNS)


def test_policies_that_are_not_served():
  config = mrt_hidden.get_config('tiny')
  with pytest.raises(ValueError, match='speaks between the tokens'):
    voices.of_policy(config, {})
  config = mrt_countdown.get_config('tiny')
  config.rollout.top_k = config_dict.placeholder(int)
  config.rollout.top_k = 5
  with pytest.raises(ValueError, match='top_k=5 is not served'):
    voices.of_policy(config, {})


def speaker(thinking, words=WORDS):
  """Returns what `converse.load` would, without a model."""
  template = '{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}'
  return types.SimpleNamespace(
    model=None,
    params=None,
    words=words,
    template=chat_template.ChatTemplate(template),
    thinking=chat_template.thinking(thinking),
    options={
      'max_new_tokens': 9,
      'temperature': 0.5,
      'top_p': None,
      'thinking_budget': None,
    },
    context=512,
  )


def test_a_language_model():
  voice = voices.of_checkpoint(speaker('r1'), 262)
  turns = [{'role': 'developer', 'content': 'Be brief.'}, *TURNS]
  text = voice.decode(voices.encode(voice, turns))
  assert text == '[system]Be brief.[user]Hi<think>\n'
  assert voice.marks.think_end_id == CLOSE
  assert voice.decode(voice.marks.stop_ids).startswith('\n\nTime is up.')
  assert voice.marks.end_ids == (WORDS.eos_id,)
  assert voice.defaults['top_p'] == 1.0
  plain = voices.of_checkpoint(speaker('plain'), 262)  # '####' is four bytes
  assert plain.marks.think_end_id is None
  assert plain.marks.stop_ids == ()


def test_served_by_an_engine():
  """A tiny policy from its prompt to its text, as decoded offline."""
  from meta_rl import setup_run
  from meta_rl.serving import engine

  config = mrt_countdown.get_config('tiny')
  params = setup_run.initial_params(config)
  voice = voices.of_policy(config, params)
  made = engine.Engine(voice.model, params, voice.marks, rows=2, length=64)
  made.start(warm=False)
  ids = voices.encode(voice, '<bos> 3 5 7 = 15 <think>')
  one = voices.request(voice, ids, 64, ask(seed=4))
  tokens, *_ = serving.Inbox(made, one).all()
  made.stop()
  assert tokens == serving.alone(one, voice.model, params, voice.marks)
  assert jax.tree.leaves(params)
