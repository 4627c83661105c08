r"""MRT on competition mathematics, from Gemma 3 1B.

Meta reinforcement fine-tuning (Qu et al. 2025, arXiv 2503.07572), online form:
the thought is cut into episodes, 4 answers are forced at each of their ends and
graded by math-verify, and progress is the credit of an episode.

    hf download google/gemma-3-1b-it --local-dir=MODEL
    python -m meta_rl.train --config=configs/mrt_gemma3_1b.py \
      --config.model.path=MODEL --config.task.data.path=PROBLEMS \
      --workdir=runs/gemma3_1b

PROBLEMS is a JSONL or Parquet file with a question and an answer a row, or a
folder with train* and test* files. `:tiny` runs the same code in seconds on
random weights and problems of its own, `:files,tiny` on PROBLEMS. LoRA:
--config.model.lora_rank=16

Hardware: one v5e-8 slice or one GPU of 80 GB (estimated). Time and score: not
yet run.
"""

import ml_collections

from meta_rl.configs import _llm


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'external', 'files' and 'tiny'."""
  return _llm.make(arg, architecture='gemma3', thinking='plain')
