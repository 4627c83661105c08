r"""MRT on competition mathematics, from DeepSeek-R1-Distill-Qwen-1.5B.

Meta reinforcement fine-tuning (Qu et al. 2025, arXiv 2503.07572), online form:
the thought is cut into episodes, 4 answers are forced at each of their ends and
graded by math-verify, and progress is the credit of an episode.

    hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --local-dir=MODEL
    python -m meta_rl.train --config=configs/mrt_r1_distill_qwen_1p5b.py \
      --config.model.path=MODEL --config.task.data.path=PROBLEMS \
      --workdir=runs/r1_distill_qwen_1p5b

PROBLEMS is a JSONL or Parquet file with a question and an answer a row, or a
folder with train* and test* files. `:tiny` runs the same code in seconds on
random weights and problems of its own, `:files,tiny` on PROBLEMS. LoRA:
--config.model.lora_rank=16

Hardware: one v5e-16 slice or 8 GPUs of 80 GB (estimated). Time and score: not
yet run.
"""

import ml_collections

from meta_rl.configs import _llm


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'external', 'files' and 'tiny'."""
  return _llm.make(arg, architecture='qwen2', thinking='r1')
