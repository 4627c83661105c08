"""What the configs of language models share (no config of its own)."""

import ml_collections
from ml_collections import config_dict

from meta_rl import chat_template
from meta_rl.configs import mrt_countdown, take_rollouts

# The switches of each architecture, at a size for trials.
_TINY = {
  'llama': {'num_kv_heads': 1},
  'qwen2': {'num_kv_heads': 1, 'qkv_bias': True},
  'qwen3': {'num_kv_heads': 1, 'qk_norm': True, 'head_dim': 12},
  'gemma3': {
    'num_kv_heads': 1,
    'qk_norm': True,
    'head_dim': 12,
    'activation': 'gelu_tanh',
    'norm_plus_one': True,
    'post_norms': True,
    'embedding_scale': 4.0,
    'sliding_window': 16,
    'local_layers': (True, False),
    'local_rope_base': 1000.0,
  },
}
PLAIN = (
  'Please reason step by step. Then write #### and your final answer within '
  '\\boxed{}.'
)
MATH = 'Please reason step by step, and put your final answer within \\boxed{}.'


def make(
  arg: str, *, architecture: str, thinking: str
) -> ml_collections.ConfigDict:
  """Returns MRT with sampled branches on mathematics, for a checkpoint.

  The paper's hyper-parameters where it gives them (arXiv 2503.07572, appendix:
  learning rate 1e-6, cosine, warm-up 0.1, weight decay 0.01, 256 traces of 4 a
  prompt, temperature 0.9); at most 6 episodes and 4 branches a boundary are
  those of the public MRT v0.1.

  Args:
    arg: joins 'external' (rollouts of another engine, from a file), 'tiny' and
      'files': 'tiny' on own problems, on which all else is anyway.
    architecture: a key of the sizes for trials.
    thinking: a key of `chat_template.THINKING`.
  """
  words = [word for word in arg.split(',') if word]
  if unknown := sorted(set(words) - {'external', 'files', 'tiny'}):
    raise ValueError(
      f'unknown argument {unknown}: allowed are external, files and tiny.'
    )
  tiny = 'tiny' in words
  config = mrt_countdown.get_config('tiny' if tiny else '')
  config.init_from = ''  # what model.path holds; 'random' for fresh weights
  how, instruction = chat_template.thinking(thinking), MATH
  if thinking == 'plain':
    # A tokenizer of which '####' is not one token is refused at the start:
    # choose another close, stop and instruction then.
    instruction = PLAIN
  config.model = {
    # A folder in Hugging Face format: config.json, *.safetensors, tokenizer.
    'path': '' if tiny else '???',
    'dtype': 'float32' if tiny else 'bfloat16',
    'param_dtype': 'float32',
    'scan_layers': True,
    'remat': 'none' if tiny else 'full',
    # Of the update: only 'dense' holds the scores of whole traces.
    'attention': 'flash',
    # LoRA: rank 0 trains all weights.
    'lora_rank': 0,
    'lora_alpha': 32.0,
    'lora_layers': ('*',),  # of q, k, v, o, gate, up, down
  }
  config.task = {
    'name': 'text',
    'source': 'files',
    # JSONL, JSON or Parquet with questions and answers: a file, or a folder
    # with train*, test* (meta_rl/tasks/text_files.py). What is None is found
    # in them, or known of the source ('gsm8k', 'math').
    'data': {
      'path': '' if tiny else '???',
      'test_path': config_dict.placeholder(str),
      'answer_format': config_dict.placeholder(str),  # plain, boxed, gsm8k
      'question_key': config_dict.placeholder(str),
      'answer_key': config_dict.placeholder(str),
    },
    'tokenizer': 'bytes',
    'verifier': 'math',
    'timeout_s': 5.0,
    'workers': config_dict.placeholder(int),  # that grade; None: one a core
    'template': 'checkpoint',  # its own, 'chatml' or 'none'
    'system': '',
    'instruction': instruction,
    # What templates that ask take for today: every prompt of a run has it.
    'date': '2024-07-26',
    'open': how.open,
    'close': how.close,
    # What the paper puts behind a prefix to have it answered at once, a blank
    # line before it: the budget ends a thought anywhere, in a sentence too.
    # Episodes end without it, where it is tokens of its own.
    'stop': how.forced_stop().removesuffix(how.answer_prefix),
    'answer_prefix': how.answer_prefix,
    'stop_strings': how.stop_strings,
    'segments': {'with_blank_line': False},
    'prompt_length': 1024,
    'answer_length': 512,
    'max_answers': 1,
    'spellings': ('{}',),  # of a listed answer, for the exact prover
    # Of what the verifier is told of a problem; None: 512.
    'gold_bytes': config_dict.placeholder(int),
  }
  if not tiny:
    config.task.tokenizer = config.model.get_oneway_ref('path')
  config.rollout.update(
    {'num_prompts': 64, 'group_size': 4, 'temperature': 0.9}
  )
  config.rollout.thinking_budget = 8192
  # Response tokens that the KV cache has room for, in turn: a step reads no
  # more slots than its bucket has.
  config.rollout.cache_buckets = (1024, 2048, 4096)
  config.prover.update(
    {
      'kind': 'sampled',
      'num_branches': 4,
      # Traces whose branches are in memory at a time: 1 fits a chip of 16 GB,
      # where 2 take 0.6 of the time (meta_rl.plan).
      'block_rows': 1,
      'max_episodes': 6,
      'boundaries': 'text',
    }
  )
  config.batching.update(
    {'mini_batches': 1, 'rows_per_device': 1, 'length_buckets': (3072, 6144)}
  )
  config.loss.chunk = 1024
  config.optimizer.update(
    {
      'learning_rate': 1e-6,
      'schedule': 'cosine',
      'weight_decay': 0.01,
      'warmup_steps': 10,
    }
  )
  config.total_steps = 100
  config.parallel.update({'kind': 'jit'})
  config.parallel.mesh.fsdp = -1
  config.parallel.mesh.data = 1
  config.eval.update({'every': 10, 'num_problems': 256, 'batch_size': 64})
  # A right answer can be written in more ways than could be listed: what is
  # measured, too, is by `prover.num_branches` answers and the verifier.
  config.eval.prover = 'sampled'
  config.checkpoint.every = 10
  config.log.update({'samples_every': 10, 'print_every': 1})
  # bfloat16 rounds the two passes differently.
  config.max_log_prob_gap = 0.1
  if tiny:
    make_tiny(config, architecture, own='files' in words)
  if 'external' in words:
    take_rollouts(config)
    if not tiny:
      config.total_steps = 20  # a file is used up by a few passes
  return config


def make_tiny(
  config: ml_collections.ConfigDict, architecture: str, *, own: bool = False
):
  """Makes a config run in seconds: random weights, tokens of bytes.

  Args:
    config: of `make`.
    architecture: as there.
    own: on the problems of task.data.path, as the whole config would; else on
      Countdown in words.
  """
  sizes = {'vocab_size': 262, 'num_layers': 2, 'width': 16, 'num_heads': 2}
  config.model = config.model.to_dict() | sizes | _TINY[architecture]
  config.model.ffn_width = 32
  if own:
    config.task.data.path = '???'
    config.task.update({'prompt_length': 1152, 'answer_length': 32})
    config.task.instruction = config.task.instruction.replace(
      config.task.close, '</think>'
    )
  else:
    config.task.update(
      {
        'source': 'countdown',
        'verifier': 'expression',
        'instruction': '',
        'prompt_length': 144,
        'answer_length': 12,
        'max_answers': 4,
      }
    )
    config.task.data = {'n': 3, 'high': 6, 'ops': '+-', 'max_answers': 4}
  # One token of the byte tokenizer, and few to force.
  config.task.update({'close': '</think>', 'stop': '\n\nStop.\n</think>'})
  config.task.answer_prefix = '\n' if config.task.answer_prefix else ''
  config.rollout.update({'num_prompts': 4, 'group_size': 4})
  config.rollout.thinking_budget = 32
  config.rollout.cache_buckets = (16,)
  config.prover.update({'max_episodes': 3, 'num_branches': 2})
  config.batching.update({'micro_batches': 2, 'length_buckets': ()})
  config.batching.rows_per_device = None
  config.loss.chunk = 16
  config.total_steps = 4
  config.optimizer.warmup_steps = 1
  config.parallel.kind = 'none'
  problems = 4 if own else 16  # of a small file few are held out
  config.eval.update(
    {'every': 2, 'num_problems': problems, 'batch_size': problems}
  )
  config.checkpoint.every = 2
  config.log.update({'samples_every': 2})
