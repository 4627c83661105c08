"""Talking to a checkpoint: its template, a thought on a budget, the pieces."""

import dataclasses
import io

import jax
import pytest
import tokenizers

from meta_rl import (
  chat_template,
  converse,
  generate,
  hf,
  models,
  text_tokenizer,
)

WORDS = text_tokenizer.load('bytes')
SHAPE = models.TransformerConfig(
  vocab_size=262, num_layers=1, width=16, num_heads=2, ffn_width=16
)
TEMPLATE = (
  '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
  '{% endfor %}<|im_start|>assistant\n'
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return save(tmp_path_factory.mktemp('models') / 'own')


def save(folder, template=TEMPLATE, tokenizer=WORDS.tokenizer, **changes):
  """Writes a checkpoint; the changes are to its shape."""
  shape = dataclasses.replace(SHAPE, **changes)
  info = hf.TokenizerInfo(
    tokenizer=tokenizer,
    chat_template=template,
    bos_id=None,
    eos_ids=(WORDS.eos_id,),
    pad_id=0,
  )
  hf.save_checkpoint(
    folder,
    models.init_params(shape, jax.random.key(0)),
    shape,
    hf.config_to_hf(shape, max_position_embeddings=512),
    tokenizer=info,
  )
  return folder


def load(folder, thinking='', **changes):
  options = {
    'temperature': 1.0,
    'max_new_tokens': 48,
    'thinking_budget': 8,
    **changes,
  }
  return converse.load(
    str(folder), thinking=thinking, dtype='float32', **options
  )


def test_a_thought_is_closed_at_its_budget(folder):
  own = chat_template.thinking('r1', termination='', answer_prefix='!')
  speaker = load(folder)
  assert speaker.thinking.name == 'r1'  # its tokenizer knows </think>
  speaker = converse.dataclasses.replace(speaker, thinking=own)
  turns = [{'role': 'user', 'content': 'Hi'}]
  pieces = list(converse.reply(speaker, turns, jax.random.key(0)))
  text = ''.join(pieces)
  assert '\n\n</think>!' in text  # forced
  assert len(pieces) > 2  # as it comes
  assert len(text.split('\n\n</think>!')[0]) <= 8
  assert '<|im_end|>' not in text


def test_talk_goes_on_without_the_thoughts(folder, monkeypatch, capsys):
  speaker = load(folder)
  seen = []

  def reply(speaker, turns, key):
    seen.append([dict(turn) for turn in turns])
    yield from ('hm', '</think>', ' yes ')

  monkeypatch.setattr(converse, 'reply', reply)
  monkeypatch.setattr('sys.stdin', io.StringIO('one\n\ntwo\n'))
  converse.converse(speaker, system='Be brief.', seed=0)
  assert capsys.readouterr().out == 'hm</think> yes \n' * 2
  assert [turn['content'] for turn in seen[1]] == [
    'Be brief.',
    'one',
    'yes',
    'two',
  ]
  converse.converse(speaker, prompt='alone', system='', seed=0)
  assert [turn['content'] for turn in seen[2]] == ['alone']


def test_a_base_model_is_refused(folder, tmp_path):
  for file in folder.iterdir():
    if file.name != 'chat_template.jinja':
      (tmp_path / file.name).write_bytes(file.read_bytes())
  settings = tmp_path / 'tokenizer_config.json'
  settings.write_text('{"eos_token": "<|im_end|>"}')
  with pytest.raises(ValueError, match='it is a base model'):
    load(tmp_path)
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  with pytest.raises(ValueError, match='is a run folder of meta_rl, no check'):
    load(tmp_path / 'run')
  with pytest.raises(ValueError, match='neither a folder nor a .gguf'):
    load(tmp_path / 'none')


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
  message = (
    r'--model=.*small: its tokenizer has ids up to 261; the vocabulary of the '
    r'model is 0\.\.259: put the tokenizer.json there'
  )
  with pytest.raises(ValueError, match=message):
    load(save(tmp_path / 'small', vocab_size=260))
  # A token of images, which nothing writes, may be beyond it.
  words = tokenizers.Tokenizer.from_str(WORDS.tokenizer.to_str())
  words.add_special_tokens(['<image>'])
  assert load(save(tmp_path / 'image', tokenizer=words))
  words.add_tokens(['word'])
  with pytest.raises(ValueError, match='ids up to 263'):
    load(save(tmp_path / 'word', tokenizer=words))


def test_a_template_that_is_broken_is_named(tmp_path):
  with pytest.raises(ValueError, match='chat template of .*broken is no Jinja'):
    load(save(tmp_path / 'broken', template='{% for'))


def test_a_budget_that_cannot_end_a_thought_is_refused(folder):
  with pytest.raises(
    ValueError, match=r'--thinking_budget=8 with --thinking=plain: .* tokens'
  ):
    load(folder, thinking='plain')
  assert load(folder, thinking='plain', thinking_budget=None)


def test_any_end_token_ends_an_answer(folder, monkeypatch):
  words = dataclasses.replace(WORDS, end_ids=(WORDS.id_of('<eos>'),))
  speaker = dataclasses.replace(load(folder, thinking_budget=None), words=words)
  ids = [WORDS.encode('so'), WORDS.encode(' it<eos>no')]
  monkeypatch.setattr(converse.streaming, 'stream', lambda *_, **__: iter(ids))
  turns = [{'role': 'user', 'content': 'Hi'}]
  pieces = list(converse.reply(speaker, turns, jax.random.key(0)))
  assert pieces == ['so', ' it']


@pytest.mark.full
def test_the_likeliest_token_alone(folder):
  turns = [{'role': 'user', 'content': 'Hi'}]
  said = lambda **options: ''.join(
    converse.reply(
      load(folder, thinking_budget=None, **options), turns, jax.random.key(3)
    )
  )
  greedy = said(temperature=0.0)
  assert said(temperature=5.0, top_k=1) == greedy
  assert said(temperature=5.0, top_p=1e-9) == greedy
  assert said(temperature=5.0) != greedy


def test_what_a_model_writes_does_not_drive_the_terminal(
  folder, monkeypatch, capsys
):
  said = 'a\x1b[2J\x07b\r\n\tc\x9b\u202e\u2067\u2028'
  monkeypatch.setattr(converse, 'reply', lambda *_: iter(said))
  speaker = load(folder, thinking_budget=None)
  converse.converse(speaker, prompt='Hi', system='', seed=0)
  shown = 'a\ufffd[2J\ufffdb\ufffd\n\tc' + '\ufffd' * 4 + '\n'
  assert capsys.readouterr().out == shown
  row = {'prompt': '\x1b]0;p', 'response': said, 'reward': 1.0}
  assert not set('\x1b\x07\r\x9b') & set(generate.show(row))


def test_a_conversation_that_is_too_long_is_refused(folder):
  """Made for 512 tokens."""
  turns = [{'role': 'user', 'content': 'a' * 512}]
  speaker = load(folder, thinking_budget=None)
  with pytest.raises(ValueError, match=r'has 5\d\d tokens by now.*for 512:'):
    next(converse.reply(speaker, turns, jax.random.key(0)))
  # What room is left is used: it may well be enough.
  turns[0]['content'] = 'a' * 480
  asked = converse.reply(speaker, turns, jax.random.key(0))
  assert len(WORDS.encode(''.join(asked))) < speaker.options['max_new_tokens']
