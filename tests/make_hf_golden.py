"""Tiny random checkpoints of `transformers`, and the logits that it gives.

    python tests/make_hf_golden.py make DIR [SEED]
    python tests/make_hf_golden.py read CHECKPOINT OUT.npz
    python tests/make_hf_golden.py gguf FILE REQUEST.json OUT.json
    python tests/make_hf_golden.py tokenizer FOLDER REQUEST.json OUT.json

`make` wrote tests/data/hf (seed 0). The others ask transformers about what is
given. Needs torch and transformers, and for `gguf` that
package; the tests that compare with a record need none of them.
"""

import json
import pathlib
import sys

import numpy as np

ROWS, LENGTH, VOCAB = 4, 24, 64
FAR = 500  # where the last row's positions begin
SHARED = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
# Contexts are 16 tokens before any stretching: rows of 24 go beyond.
VARIANTS = {
  'llama': {'tie_word_embeddings': True, 'max_position_embeddings': 16},
  'llama_rope': {
    'attention_bias': True,
    'mlp_bias': True,
    'max_position_embeddings': 64,
    'rope_parameters': {
      'rope_type': 'llama3',
      'rope_theta': 500.0,
      'factor': 4.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 16,
    },
  },
  'qwen2': {'tie_word_embeddings': True, 'max_position_embeddings': 16},
  'qwen2_yarn': {
    'use_sliding_window': True,
    'sliding_window': 5,
    'max_window_layers': 1,
    'max_position_embeddings': 64,
    'rope_parameters': {
      'rope_type': 'yarn',
      'rope_theta': 1000.0,
      'factor': 4.0,
      'beta_fast': 4.0,
      'beta_slow': 0.25,
      'original_max_position_embeddings': 16,
    },
  },
  'qwen3': {'head_dim': 16, 'max_position_embeddings': 16},
  'qwen3_tied': {
    'tie_word_embeddings': True,
    'head_dim': 16,
    'max_position_embeddings': 16,
  },
  'gemma3_text': {
    'num_hidden_layers': 3,
    'head_dim': 16,
    'query_pre_attn_scalar': 24,
    'sliding_window': 4,
    'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
    'final_logit_softcapping': 3.0,
    'attn_logit_softcapping': 1.0,
    'max_position_embeddings': 64,
    'rope_parameters': {
      'full_attention': {
        'rope_type': 'linear',
        'rope_theta': 1000.0,
        'factor': 8.0,
      },
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
    },
  },
  'gemma3_text_untied': {
    'tie_word_embeddings': False,
    'head_dim': 16,
    'layer_types': ['sliding_attention', 'full_attention'],
    'sliding_window': 4,
    'max_position_embeddings': 16,
  },
}
SHARD_BYTES = {'qwen2_yarn': 12_000}  # this one in several files


def make_inputs(seed=0):
  """Returns tokens i32[R,T], mask bool[R,T] and positions i32[R,T].

  Rows: whole; padded on the left; padded on the right; whole, far out.
  """
  tokens = np.random.default_rng(seed).integers(3, VOCAB, (ROWS, LENGTH))
  mask = np.ones((ROWS, LENGTH), bool)
  mask[1, :7] = False
  mask[2, -5:] = False
  positions = np.where(mask, mask.cumsum(1) - 1, -1)
  positions[3] += FAR
  tokens[~mask] = 0
  return tokens.astype(np.int32), mask, positions.astype(np.int32)


def logits_of(model):
  """Returns the logits f32[R,T,V] of the inputs, 0 at padding."""
  import torch

  tokens, mask, positions = make_inputs()
  with torch.no_grad():
    logits = model(
      input_ids=torch.tensor(tokens, dtype=torch.int64),
      attention_mask=torch.tensor(mask, dtype=torch.int64),
      position_ids=torch.tensor(np.maximum(positions, 0), dtype=torch.int64),
      use_cache=False,
    ).logits
  return np.where(mask[..., None], logits.float().numpy(), 0)


def capped_logits(model):
  """Returns the logits of Gemma 3 with the cap on attention that it drops.

  The reference's own attention takes a cap; its layers do not hand it over.
  """
  from transformers.models.gemma3 import modeling_gemma3

  plain = modeling_gemma3.eager_attention_forward

  def capped(module, *args, **kwargs):
    kwargs['softcap'] = module.attn_logit_softcapping
    return plain(module, *args, **kwargs)

  modeling_gemma3.eager_attention_forward = capped
  try:
    return logits_of(model)
  finally:
    modeling_gemma3.eager_attention_forward = plain


def random_model(name, seed):
  """Returns a model of a variant in eval mode, lively and rounded to bf16."""
  import torch
  import transformers

  # Of the variants that a model comes in: 'qwen2_yarn' is 'qwen2'.
  kind = name
  for variant in ('_yarn', '_rope', '_tied', '_untied'):
    kind = kind.removesuffix(variant)
  config = transformers.AutoConfig.for_model(kind, **SHARED | VARIANTS[name])
  config._attn_implementation = 'eager'
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  generator = torch.Generator().manual_seed(seed)
  gemma = kind == 'gemma3_text'
  for key, value in model.named_parameters():
    noise = torch.randn(value.shape, generator=generator)
    if 'norm' in key:
      noise = 0.2 * noise + (0.0 if gemma else 1.0)
    elif value.ndim == 1:
      noise = 0.3 * noise
    elif 'embed' in key:
      noise = 0.5 * noise
    else:
      noise = 1.5 * noise * value.shape[1] ** -0.5
    value.data = noise.to(torch.bfloat16).float()
  return model


def make(folder, seed):
  """Writes a checkpoint of every variant, with `golden.npz` in its folder."""
  import torch

  for name in VARIANTS:
    model = random_model(name, seed)
    golden = {'logits': logits_of(model)}
    if name == 'gemma3_text':
      golden['capped_logits'] = capped_logits(model)
    target = pathlib.Path(folder) / name
    model.to(torch.bfloat16).save_pretrained(
      target, max_shard_size=SHARD_BYTES.get(name, '50GB')
    )
    (target / 'generation_config.json').unlink(missing_ok=True)
    np.savez_compressed(target / 'golden.npz', **golden)


def read(folder, out):
  """Writes logits and the raw bits of every tensor of a checkpoint."""
  import torch
  import transformers

  load = transformers.AutoModelForCausalLM.from_pretrained
  model, info = load(folder, dtype='auto', output_loading_info=True)
  assert not any(info.values()), info
  bits = {
    f'tensor/{key}': value.view(torch.uint8).numpy()
    for key, value in model.state_dict().items()
  }
  model = load(folder, dtype=torch.float32, attn_implementation='eager').eval()
  np.savez(out, logits=logits_of(model), **bits)


def gguf(path, request, out):
  """Writes what `transformers` makes of a GGUF file.

  The request holds `text`, whose log-probabilities are given; `questions`, each
  answered greedily with `max_new_tokens` tokens; and `strings`, whose ids are.
  """
  import torch
  import transformers

  path = pathlib.Path(path)
  asked = json.loads(pathlib.Path(request).read_text('utf-8'))
  where = {'gguf_file': path.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, dtype=torch.float32, **where
  ).eval()
  ids = tokenizer(asked['text'], return_tensors='pt').input_ids
  with torch.no_grad():
    log_probs = model(ids).logits.log_softmax(-1)
  found = log_probs[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
  answers, prompts = [], []
  for question in asked['questions']:
    prompt = tokenizer.apply_chat_template(
      [{'role': 'user', 'content': question}],
      add_generation_prompt=True,
      return_tensors='pt',
      return_dict=True,
    ).input_ids
    tokens = model.generate(
      prompt,
      attention_mask=torch.ones_like(prompt),
      do_sample=False,
      max_new_tokens=asked['max_new_tokens'],
    )
    prompts.append(prompt[0].tolist())
    answers.append(tokens[0, prompt.shape[1] :].tolist())
  result = {
    'text_ids': ids[0].tolist(),
    'log_probs': found.tolist(),
    'prompts': prompts,
    'answers': answers,
    'strings': [
      tokenizer(s, add_special_tokens=False).input_ids for s in asked['strings']
    ],
    'decoded': [tokenizer.decode(ids) for ids in answers],
  }
  pathlib.Path(out).write_text(json.dumps(result), 'utf-8')


def tokenizer(folder, request, out):
  """Writes what `transformers` makes of the tokenizer in a folder.

  The request holds `strings`, whose ids are given, and `messages`, a chat.
  """
  import transformers

  asked = json.loads(pathlib.Path(request).read_text('utf-8'))
  found = transformers.AutoTokenizer.from_pretrained(folder)
  ids = [found(s, add_special_tokens=False).input_ids for s in asked['strings']]
  result = {
    'strings': ids,
    'decoded': [found.decode(i, skip_special_tokens=True) for i in ids],
    'chat': found.apply_chat_template(
      asked['messages'], add_generation_prompt=True, tokenize=False
    ),
    'special': [found.bos_token_id, found.eos_token_id, found.pad_token_id],
  }
  pathlib.Path(out).write_text(json.dumps(result), 'utf-8')


def main(command, *args):
  """Runs one of the four commands."""
  if command == 'make':
    make(args[0], int(args[1]) if len(args) > 1 else 0)
  else:
    {'read': read, 'gguf': gguf, 'tokenizer': tokenizer}[command](*args)


if __name__ == '__main__':
  main(*sys.argv[1:])
