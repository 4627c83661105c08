"""Tests of meta_rl.hf.save: folders that other tools load."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import hf_files
import jax
import make_hf_golden as golden
import numpy as np
import pytest
import tokenizers
from conftest import ROOT
from hf_files import DATA
from test_hf_golden import MASK, whole

from meta_rl import hf
from meta_rl.hf import save
from meta_rl.hf.tensors import TensorFile

NAMES = tuple(golden.VARIANTS)
SCRIPT = ROOT / 'tests' / 'make_hf_golden.py'


def load(name, **overrides):
  """Config, parameters and config.json of a committed checkpoint."""
  config = hf.read_config(DATA / name, **overrides)
  params = hf.load_checkpoint(DATA / name, config)
  return config, params, hf.hf_config_of(DATA / name)


def same_bits(first, second):
  """Asserts that two dicts of tensors hold the same bits."""
  assert first.keys() == second.keys()
  for name, array in first.items():
    assert array.dtype == second[name].dtype
    assert array.shape == second[name].shape
    assert array.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
  'name, scan', [(name, False) for name in NAMES] + [('gemma3_text', True)]
)
def test_what_was_loaded_is_saved_bit_for_bit(tmp_path, name, scan):
  config, params, values = load(name, scan_layers=scan)
  out = tmp_path / 'out'
  # Through float32 and back: bfloat16 fits into it.
  hf.save_checkpoint(
    out, params, config, values, dtype='bfloat16', max_shard_bytes=20_000
  )
  same_bits(hf_files.read_all(out), hf_files.read_all(DATA / name))
  assert json.loads((out / 'config.json').read_text('utf-8')) == values
  config_again, params_again, _ = hf.load_model(
    out, scan_layers=scan, tokenizer=False
  )
  assert config_again == config
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_shards_hold_no_more_than_they_may(tmp_path):
  config, params, values = load('llama')
  for limit, one in ((10_000, False), (10**9, True)):
    out = tmp_path / str(limit)
    hf.save_checkpoint(out, params, config, values, max_shard_bytes=limit)
    files = sorted(out.glob('*.safetensors'))
    assert (len(files) == 1) == one
    assert (out / 'model.safetensors').exists() == one
    for file in files:
      tensors = TensorFile(file).tensors
      size = sum(count for *_, count in tensors.values())
      assert size <= limit or len(tensors) == 1
    assert TensorFile(files[0]).metadata == {'format': 'pt'}
  # The parameters are float32, and config.json says so.
  assert hf.hf_config_of(out)['dtype'] == 'float32'


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
  config, params, values = load('llama')

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(save, '_write_tokenizer', full)
  with pytest.raises(OSError, match='No space'):
    hf.save_checkpoint(tmp_path / 'out', params, config, values)
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(OSError, match='No space'):
    hf.save_checkpoint(tmp_path / 'a' / 'b' / 'out', params, config, values)
  assert list(tmp_path.iterdir()) == []


def test_a_save_that_is_ended_leaves_nothing(tmp_path, monkeypatch):
  config, params, values = load('llama')
  monkeypatch.setattr(
    save, '_write_tokenizer', lambda *_: os.kill(os.getpid(), signal.SIGTERM)
  )
  with pytest.raises(SystemExit) as caught:
    hf.save_checkpoint(tmp_path / 'a' / 'out', params, config, values)
  assert caught.value.code == 128 + signal.SIGTERM
  assert list(tmp_path.iterdir()) == []
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  # A handler of one's own is left alone.
  seen = []
  signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
  try:
    hf.save_checkpoint(tmp_path / 'out', params, config, values)
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  assert seen == [1]


def test_what_cannot_be_saved_is_refused(tmp_path):
  config, params, values = load('llama')
  out = tmp_path / 'out'
  attempt = lambda *a, **k: hf.save_checkpoint(out, *a, **k)
  with pytest.raises(ValueError, match=r"\['norm_eps'\] of this model"):
    attempt(params, config, values | {'rms_norm_eps': 1e-3})
  with pytest.raises(ValueError, match="dtype='int8' is given"):
    attempt(params, config, values, dtype='int8')
  with pytest.raises(ValueError, match='not of this model: extra/kernel'):
    attempt(params | {'extra': {'kernel': np.ones(2)}}, config, values)
  with pytest.raises(ValueError, match='max_shard_bytes=0'):
    attempt(params, config, values, max_shard_bytes=0)
  with pytest.raises(ValueError, match='holds no tokenizer.json'):
    attempt(params, config, values, tokenizer=DATA / 'llama')
  assert list(tmp_path.iterdir()) == []
  out.mkdir()
  attempt(params, config, values)  # an empty folder is not in the way
  with pytest.raises(ValueError, match='exists: give a folder that does not'):
    attempt(params, config, values)


def small_tokenizer():
  """A tokenizer of five words."""
  words = {'<pad>': 0, '<s>': 1, '</s>': 2, 'a': 3, 'b': 4}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return tokenizer


def test_a_tokenizer_goes_along(tmp_path):
  config, params, values = load('llama')
  info = hf.TokenizerInfo(small_tokenizer(), '{{ messages }}', 1, (2, 4), 0)
  first, second = tmp_path / 'first', tmp_path / 'second'
  hf.save_checkpoint(first, params, config, values, tokenizer=info)
  hf.save_checkpoint(second, params, config, values, tokenizer=first)
  for folder in (first, second):
    found = hf.load_model(folder)[2]
    assert found.tokenizer.encode('b a').ids == [4, 3]
    rest = (found.chat_template, found.bos_id, found.eos_ids, found.pad_id)
    assert rest == ('{{ messages }}', 1, (2, 4), 0)
  # Elsewhere: the template in a file of its own, special tokens as objects,
  # and one that the tokenizer does not know.
  (second / 'chat_template.jinja').write_text('own')
  hf_files.edit_json(
    second / 'tokenizer_config.json', eos_token={'content': 'a'}, bos_token=None
  )
  found = hf.read_tokenizer(second)
  # config.json and generation_config.json end a text with 2 and 4 too.
  rest = (found.chat_template, found.bos_id, found.eos_ids)
  assert rest == ('own', 1, (3, 2, 4))
  hf_files.edit_json(second / 'tokenizer_config.json', eos_token='zzz')
  with pytest.raises(ValueError, match="eos_token 'zzz' is not in"):
    hf.read_tokenizer(second)


def reference(*args):
  """Runs the script in the environment that has transformers."""
  python = os.environ.get('META_RL_TRANSFORMERS_PYTHON')
  if python is None:
    if not all(map(importlib.util.find_spec, ('torch', 'transformers'))):
      pytest.skip('no transformers, nor META_RL_TRANSFORMERS_PYTHON')
    python = sys.executable
  result = subprocess.run(
    [python, SCRIPT, *map(str, args)],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=580,
  )
  assert result.returncode == 0, result.stderr


@pytest.mark.full
def test_fresh_checkpoints_of_transformers(tmp_path):
  reference('make', tmp_path, 7)
  for name in NAMES:
    folder = tmp_path / name
    expected = np.load(folder / 'golden.npz')['logits'][MASK]
    for scan in (False, True):
      config = hf.read_config(folder, scan_layers=scan)
      found = whole(config, hf.load_checkpoint(folder, config))[MASK]
      np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize('name', NAMES)
def test_transformers_loads_what_we_save(tmp_path, name):
  config, params, values = load(name)
  made = hf.config_to_hf(config, max_position_embeddings=64)
  for given in (values, made):
    out = tmp_path / f'out{given is made}'
    hf.save_checkpoint(
      out, params, config, given, dtype='bfloat16', max_shard_bytes=20_000
    )
    reference('read', out, tmp_path / 'read.npz')
    found = np.load(tmp_path / 'read.npz')
    recorded = np.load(DATA / name / 'golden.npz')['logits']
    np.testing.assert_allclose(found['logits'], recorded, atol=1e-5)
    for tensor, array in hf_files.read_all(DATA / name).items():
      assert found[f'tensor/{tensor}'].tobytes() == array.tobytes()
