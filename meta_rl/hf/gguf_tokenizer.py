"""The tokenizer of a GGUF file as one of HF `tokenizers`: byte-level BPE."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from meta_rl.checks import show
from meta_rl.hf.tokenizer import TokenizerInfo, check_id
from meta_rl.weights import first_few

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

# How the families cut text into words; 'N' is how they cut numbers.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|N"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(numbers: str):
  """Returns words by the pattern, then bytes."""
  pattern = Regex(_WORDS.replace('|N|', f'|{numbers}|'))
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(pattern, 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _smollm():
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


def _gpt2():
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


# tokenizer.ggml.pre -> the pre-tokenizer.
PRE_TOKENIZERS = {
  'gpt-2': _gpt2,
  'smollm': _smollm,
  'qwen2': lambda: _split(r'\p{N}'),
  'deepseek-r1-qwen': lambda: _split(r'\p{N}'),
  'llama-bpe': lambda: _split(r'\p{N}{1,3}'),
}
_NFC = ('qwen2',)
# A word that is a token whole is not put together by merges.
_WHOLE_WORDS = ('llama-bpe',)


def tokenizer_of(metadata: Mapping[str, Any]) -> TokenizerInfo:
  """Returns the tokenizer that a GGUF file's metadata describe.

  Args:
    metadata: 'tokenizer.ggml.model', '.pre', '.tokens', '.token_type',
      '.merges', special ids, and 'tokenizer.chat_template'.

  Raises:
    ValueError: another kind of tokenizer than byte-level BPE, a pre-tokenizer
      that is not in `PRE_TOKENIZERS`, or tokens that do not fit together.
  """
  get = lambda name: metadata.get(f'tokenizer.ggml.{name}')
  if get('model') != 'gpt2':
    raise ValueError(
      f'tokenizer.ggml.model {get("model")!r} is not supported; allowed is '
      "'gpt2' (byte-level BPE): load the model with tokenizer=False and bring "
      'its tokenizer.json'
    )
  pre = get('pre')
  if pre not in PRE_TOKENIZERS:
    raise ValueError(
      f'tokenizer.ggml.pre {pre!r} is not supported; allowed is '
      f'{", ".join(PRE_TOKENIZERS)}'
    )
  tokens, merges = get('tokens') or [], get('merges') or []
  vocabulary = {token: index for index, token in enumerate(tokens)}
  if len(vocabulary) < len(tokens):
    twice = {t for t in tokens if tokens.count(t) > 1}
    raise ValueError(f'tokenizer.ggml.tokens holds {first_few(twice)} twice')
  try:
    model = models.BPE(
      vocabulary,
      [tuple(merge.split(' ', 1)) for merge in merges],
      ignore_merges=pre in _WHOLE_WORDS,
    )
  except Exception as error:  # `tokenizers` raises bare Exception
    raise ValueError(f'tokenizer.ggml.merges: {error}') from None
  tokenizer = tokenizers.Tokenizer(model)
  if pre in _NFC:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
  tokenizer.decoder = decoders.ByteLevel()
  kinds = get('token_type') or []
  tokenizer.add_tokens(
    [
      AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, kind in zip(tokens, kinds)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  bos, pad = get('bos_token_id'), get('padding_token_id')
  names = ('eos_token_id', 'eot_token_id', 'eom_token_id')
  for name in ('bos_token_id', 'padding_token_id', *names):
    if get(name) is not None:
      check_id(f'tokenizer.ggml.{name}', get(name), len(tokens))
  template = metadata.get('tokenizer.chat_template')
  if not isinstance(template, str | None):
    raise ValueError(
      f'tokenizer.chat_template={show(template)} is given; allowed is text'
    )
  add_bos = get('add_bos_token')
  # Where the file doesn't say, Llama 3 begins with BOS and the others don't.
  if add_bos or (add_bos is None and pre == 'llama-bpe'):
    if bos is None:
      raise ValueError(
        'tokenizer.ggml.bos_token_id is missing, and each text is to begin '
        'with it: convert the checkpoint again'
      )
    tokenizer.post_processor = processors.TemplateProcessing(
      single='$bos $A'.replace('$bos', tokens[bos]),
      special_tokens=[(tokens[bos], bos)],
    )
  ends = [get(name) for name in names]
  return TokenizerInfo(
    tokenizer=tokenizer,
    chat_template=template,
    bos_id=bos,
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    pad_id=pad,
  )
