"""Chat JSONL: two forms, two templates, errors that name the line."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from meta_rl import chat, chat_template, data, tokenizer

PROMPT = '<bos> 1 2 = 3 <think>'


def write(path, *records):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
  path.write_text('\n'.join(lines), encoding='utf-8')
  return path


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'chat.jsonl'


@pytest.fixture(scope='module')
def byte_tokenizer():
  """One token a byte, and the two special tokens of ChatML."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  model = models.BPE({byte: i for i, byte in enumerate(alphabet)}, [])
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  return made


def test_prompt_and_completion(path):
  record = {'prompt': PROMPT, 'completion': '</think> 2 1 +'}
  write(path, record, '', record)
  examples = chat.chat_jsonl(path, tokenizer.make_tokenizer())
  assert len(examples) == 2
  tokens, mask = examples[0]
  assert tokenizer.decode(tokens) == f'{PROMPT} </think> 2 1 + <eos>'
  np.testing.assert_array_equal(mask, [False] * 6 + [True] * 5)
  assert tokens.dtype == np.int32


def test_plain_messages(path):
  messages = [
    {'role': 'user', 'content': PROMPT},
    {'role': 'assistant', 'content': '</think>'},
    {'role': 'user', 'content': '1'},
    {'role': 'assistant', 'content': '2 1 +'},
  ]
  write(path, {'messages': messages})
  ((tokens, mask),) = chat.chat_jsonl(path, tokenizer.make_tokenizer())
  text = f'{PROMPT} </think> <eos> 1 2 1 + <eos>'
  assert tokenizer.decode(tokens) == text
  np.testing.assert_array_equal(mask, [0] * 6 + [1, 1, 0, 1, 1, 1, 1])


def test_chatml(path, byte_tokenizer):
  messages = [
    {'role': 'user', 'content': 'hé\u2028'},
    {'role': 'assistant', 'content': 'ok'},
  ]
  line = json.dumps({'messages': messages}, ensure_ascii=False)
  write(path, line)
  ((tokens, mask),) = chat.chat_jsonl(path, byte_tokenizer)
  text = byte_tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
  assert text == (
    '<|im_start|>user\nhé\u2028<|im_end|>\n'
    '<|im_start|>assistant\nok<|im_end|>\n'
  )
  kept = byte_tokenizer.decode(tokens[mask].tolist(), skip_special_tokens=False)
  assert kept == 'ok<|im_end|>'


def test_examples_can_be_packed(path):
  write(path, {'prompt': PROMPT, 'completion': '</think> 2 1 +'})
  examples = data.chat_jsonl(path, tokenizer.make_tokenizer())
  batch = next(data.packed_batches(examples, batch_size=2, length=16))
  assert batch['loss_mask'].sum() == 10


@pytest.mark.parametrize(
  'record, message',
  [
    ('{', 'not JSON'),
    ('[1]', 'a JSON list'),
    ({'text': 'x'}, r"keys \['text'\]"),
    ({'prompt': '1', 'completion': ''}, "'completion' must be a string"),
    ({'prompt': 1, 'completion': '1'}, "'prompt' must be a string"),
    ({'messages': []}, 'must be a list that is not empty'),
    ({'messages': [{'role': 'user'}]}, 'message 0 needs'),
    ({'messages': [{'role': 'bot', 'content': '1'}]}, "role 'bot'"),
    ({'messages': [{'role': 'user', 'content': ['1']}]}, 'of type list'),
    ({'messages': [{'role': 'user', 'content': '1'}]}, 'nothing to learn'),
    ({'messages': [{'role': 'assistant', 'content': '1'}]}, 'give a prompt'),
    ({'prompt': '1 plus', 'completion': '1'}, "cannot tokenize '1 plus'"),
    ({'prompt': ' ', 'completion': '1'}, 'the prompt has no tokens'),
    ({'prompt': '1 ' * 20, 'completion': '1'}, 'at most 16 are allowed'),
  ],
)
def test_errors_name_the_line(path, record, message):
  write(path, {'prompt': '1', 'completion': '2'}, record)
  with pytest.raises(ValueError, match=rf'chat\.jsonl, line 2: .*{message}'):
    chat.chat_jsonl(path, tokenizer.make_tokenizer(), max_length=16)


def test_empty_and_foreign_files(path):
  write(path, '', ' ')
  with pytest.raises(ValueError, match='has no example'):
    chat.chat_jsonl(path, tokenizer.make_tokenizer())
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='is not UTF-8'):
    chat.chat_jsonl(path, tokenizer.make_tokenizer())


def test_templates_need_their_tokens(path):
  write(path, {'prompt': '1', 'completion': '2'})
  made = tokenizer.make_tokenizer()
  with pytest.raises(ValueError, match="no token '<|im_end|>'"):
    chat.chat_jsonl(path, made, template='chatml')
  with pytest.raises(ValueError, match="template 'llama'"):
    chat.chat_jsonl(path, made, template='llama')


LLAMA = (
  "{{ '<s>' }}{% for m in messages %}"
  "{{ '<|h|>' + m['role'] + '<|/h|>\\n' + m['content'] + '<|eot|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\\n' }}"
  '{% endif %}'
)


@pytest.fixture(scope='module')
def llama_tokenizer(byte_tokenizer):
  made = tokenizers.Tokenizer.from_str(byte_tokenizer.to_str())
  made.add_special_tokens(['<s>', '<|h|>', '<|/h|>', '<|eot|>'])
  return made


def by_template(path, tokenizer, template=LLAMA):
  render = chat_template.ChatTemplate(template).render
  return chat.chat_jsonl(path, tokenizer, render=render, eos_token='<|eot|>')


def turn(role, content):
  return {'role': role, 'content': content}


def test_messages_by_the_checkpoint_s_own_template(path, llama_tokenizer):
  turns = [turn('user', '1+1?'), turn('assistant', '2')]
  more = [turn('user', 'And 2+2?'), turn('assistant', '4')]
  write(path, {'messages': turns + more})
  ((tokens, mask),) = by_template(path, llama_tokenizer)
  show = lambda ids: llama_tokenizer.decode(ids, skip_special_tokens=False)
  render = chat_template.ChatTemplate(LLAMA).render
  assert show(tokens) == render(turns + more, add_generation_prompt=False)
  # The answers and what ends them; not the line break behind that.
  assert show(tokens[mask]) == '2<|eot|>4<|eot|>'
  # What stands before an answer is what a generation begins with.
  first = np.flatnonzero(mask)[0]
  assert show(tokens[:first]) == render(turns[:1], add_generation_prompt=True)


@pytest.mark.parametrize(
  'template',
  [
    # Thoughts are left out of a turn that is over.
    LLAMA.replace("m['content']", "m['content'].split('</think>')[-1]"),
    # A generation begins with what no finished turn has.
    LLAMA.replace('assistant<|/h|>\\n', 'assistant<|/h|>\\n<think>'),
  ],
)
def test_a_template_that_does_not_write_the_turn(
  path, llama_tokenizer, template
):
  turns = [turn('user', '1+1?'), turn('assistant', 'Hm.</think>2')]
  write(path, {'messages': turns})
  with pytest.raises(ValueError, match='line 1: message 1: the chat template'):
    by_template(path, llama_tokenizer, template)
