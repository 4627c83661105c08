r"""MRT by backtracking search on mathematics, from Llama-3.2-3B-Instruct.

The second parametrisation of Qu et al. 2025 (arXiv 2503.07572, section 5.2): a
model without a thought of its own tries, goes back to a step of what it wrote,
and goes on from there. An episode is a paragraph, and progress at its end is
measured as everywhere. Llama 3.2 does this after a warm start on such traces
(chats as JSONL, meta_rl/chat.py):

    hf download meta-llama/Llama-3.2-3B-Instruct --local-dir=MODEL
    python -m meta_rl.train --config=configs/mrt_llama3_2_3b_backtrack.py:sft \
      --config.model.path=MODEL --config.data.path=TRACES.jsonl \
      --config.task.data.path=PROBLEMS --workdir=runs/llama_sft
    python -m meta_rl.train --config=configs/mrt_llama3_2_3b_backtrack.py \
      --config.model.path=MODEL --config.init_from=runs/llama_sft \
      --config.task.data.path=PROBLEMS --workdir=runs/llama_mrt

`:tiny` runs the same code in seconds on random weights and problems of its own,
`files,tiny` on PROBLEMS; `sft,tiny` is the warm start.

Hardware: one v5e-16 slice or 4 GPUs of 80 GB (estimated). Time and score: not
yet run.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import _llm, refuse_imitating_problems


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'sft', 'external', 'files' and 'tiny'."""
  words = [word for word in arg.split(',') if word]
  if unknown := sorted(set(words) - {'sft', 'external', 'files', 'tiny'}):
    raise ValueError(
      f'unknown argument {unknown}: allowed are sft, external, files and tiny.'
    )
  refuse_imitating_problems(arg, words)
  tiny = 'tiny' in words
  rest = ','.join(word for word in words if word != 'sft')
  config = _llm.make(rest, architecture='llama', thinking='plain')
  config.task.delimiter = 'paragraph'
  if not tiny or 'files' in words:
    config.task.instruction = (
      'Solve it step by step. Where a step is wrong, write "Wait, going back '
      f'to step N" and go on from there. Then write {config.task.close} and '
      'the answer in \\boxed{}.'
    )
  config.prover.update({'boundaries': 'delimiters', 'max_episodes': 12})
  if 'sft' in words:
    config.name = 'SFT'
    config.algorithm = {'name': 'sft'}
    config.data = {
      'source': 'traces' if tiny else 'jsonl',
      'path': '' if tiny else '???',
      'orders': config_dict.placeholder(int),
      'traces': {
        'max_episodes': 4,
        'ordinary_episodes': 2,
        'p_stop': 0.05,
        'p_continue': 0.25,
      },
      'buckets': {
        'all': {'batch_size': 8, 'length': 512 if tiny else 4096},
      },
      'pattern': ('all',),
    }
    config.batching.update(
      {'micro_batches': 2, 'rows_per_device': None, 'length_buckets': ()}
    )
    config.optimizer.learning_rate = 1e-5
    config.parallel.kind = 'none'
  return config
