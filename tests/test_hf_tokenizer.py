"""The tokenizer of a checkpoint's folder: what is read, and what is refused."""

import json

import pytest
from hf_files import edit_json

from meta_rl import chat_template, text_tokenizer
from meta_rl.hf.tokenizer import read_tokenizer
from meta_rl.weights import WeightsError

WORDS = text_tokenizer.load('bytes')


@pytest.fixture
def folder(tmp_path):
  """The byte tokenizer as a checkpoint has it."""
  WORDS.tokenizer.save(str(tmp_path / 'tokenizer.json'))
  for name, values in {
    'tokenizer_config': {'eos_token': '<eos>', 'chat_template': 'T'},
    'config': {'vocab_size': 300},
    'generation_config': {},
  }.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(values), 'utf-8')
  return tmp_path


IDS = 'allowed is a token id, 0 to 299'


@pytest.mark.parametrize(
  'name, changes, message',
  [
    (
      'tokenizer',
      {'eos_token': 5},
      'eos_token=5 is given; allowed is the text',
    ),
    ('tokenizer', {'pad_token': [1]}, r'pad_token=\[1\] is given; allowed'),
    (
      'tokenizer',
      {'bos_token': 'no'},
      "bos_token 'no' is not in tokenizer.json",
    ),
    ('tokenizer', {'chat_template': 5}, 'chat_template=5 is given; allowed is'),
    ('tokenizer', {'chat_template': [{'x': 1}]}, r'=\[.*"template": text'),
    ('tokenizer', {'chat_template': [7]}, r'chat_template=\[7\] is given'),
    ('generation', {'eos_token_id': 'x'}, f"eos_token_id='x' is given; {IDS}"),
    ('generation', {'eos_token_id': [-1]}, rf'id=\[-1\] is given; {IDS}'),
    ('generation', {'eos_token_id': [[1]]}, rf'\[\[1\]\] is given; {IDS}'),
    ('generation', {'eos_token_id': 9999999}, f'=9999999 is given; {IDS}'),
    ('generation', {'eos_token_id': True}, f'=True is given; {IDS}'),
    ('generation', {'bos_token_id': -1}, f'bos_token_id=-1 is given; {IDS}'),
    ('generation', {'pad_token_id': 300}, f'pad_token_id=300 is given; {IDS}'),
  ],
)
def test_a_bad_setting_is_refused_in_one_line(folder, name, changes, message):
  edit_json(folder / f'{name}_config.json', **changes)
  with pytest.raises(WeightsError, match=message) as caught:
    read_tokenizer(folder)
  assert '\n' not in str(caught.value)
  assert str(caught.value).startswith(str(folder / f'{name}_config.json'))


def test_ids_of_several_files(folder):
  edit_json(folder / 'config.json', eos_token_id=4, bos_token_id=2)
  edit_json(
    folder / 'generation_config.json',
    **{'eos_token_id': [299, 4], 'bos_token_id': 3, 'pad_token_id': -1},
  )
  found = read_tokenizer(folder)
  assert found.eos_ids == (WORDS.id_of('<eos>'), 4, 299)
  # The last file counts, and -1 is how Llama 1 says that it has none.
  assert (found.bos_id, found.pad_id) == (3, None)
  # Without config.json the tokenizer's own ids are all.
  (folder / 'config.json').unlink()
  with pytest.raises(WeightsError, match=r'\[299, 4\] is given.* 0 to 261'):
    read_tokenizer(folder)


def test_a_special_token_that_the_model_lacks(folder):
  edit_json(folder / 'config.json', vocab_size=1)
  with pytest.raises(
    WeightsError, match="token '<eos>', id=1 is given.* to 0:"
  ):
    read_tokenizer(folder)


def test_a_template_that_is_not_utf_8(folder):
  (folder / 'chat_template.jinja').write_bytes(b'\xff')
  with pytest.raises(
    WeightsError, match='chat_template.jinja is not UTF-8.*sav'
  ):
    read_tokenizer(folder)


def test_a_list_that_holds_no_templates(folder):
  edit_json(folder / 'tokenizer_config.json', chat_template=[7])
  with pytest.raises(
    chat_template.ChatTemplateError, match=r'chat_template=\[7\] is given'
  ):
    chat_template.from_folder(folder)
