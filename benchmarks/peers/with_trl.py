"""Worker of TRL: what GRPOTrainer does to sample and to train, on two cores.

Runs in an environment of torch, transformers and trl, without meta_rl. Rollouts
go through the two calls that the trainer makes: `model.generate` and, where
continuous batching is asked for, what `model.generate_batch` consists of.
"""

import os
import statistics
import tempfile
import time

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
import worker
import workload
from transformers import ContinuousBatchingConfig, GenerationConfig

# Tokens of the KV cache that continuous batching gives out at a time.
PAGE = 32
# Without a row that is finished it hangs: so many seconds, and what all rows
# would take at so many FLOP/s.
SILENCE_S, _LEAST_RATE = 120, 5e9
_LEAST_FLOPS = 2e8  # of bare products that are timed together


class Engine:
  """TRL with a checkpoint loaded."""

  def load(self, folder: str, threads: int) -> dict:
    """Loads the checkpoint; returns the versions."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    )
    self.folder = folder
    names = ('trl', 'transformers', 'torch')
    modules = trl, transformers, torch
    return {
      'versions': {n: m.__version__ for n, m in zip(names, modules)},
      'parameters': sum(p.numel() for p in self.model.parameters()),
      'loaded_mb': worker.resident_mb(),
    }

  @torch.no_grad()
  def logits(self, tokens: list[int], path: str):
    """Writes the logits f32[T,V] of one row of tokens."""
    found = self.model(torch.tensor([tokens])).logits[0]
    np.save(path, found.numpy())

  @torch.no_grad()
  def matmuls(self, shapes: list, rounds: int) -> dict:
    """Returns the median seconds of [m,k] x [k,n] for every (m, k, n)."""
    found = []
    for m, k, n in shapes:
      a, b = torch.rand(m, k), torch.rand(n, k)
      times = max(1, round(_LEAST_FLOPS / (2 * m * k * n)))
      spent = []
      for _ in range(rounds + 1):
        with worker.clock() as seconds:
          for _ in range(times):
            torch.nn.functional.linear(a, b)
        spent += seconds
      found.append(statistics.median(spent[1:]) / times)
    return {'seconds': found}

  def modes(self, rows: int, batch: int) -> dict:
    """Returns the ways to sample so many rows."""
    sizes = workload.at_once(rows, batch)
    static = {'cache_implementation': 'static'}
    found = [{'name': f'generate, {n} rows', 'batch': n} for n in sizes]
    found += [
      {'name': f'static cache, {n} rows', 'batch': n, **static} for n in sizes
    ]
    found += [
      {'name': f'continuous batching, {n} rows', 'batch': n, 'paged': True}
      for n in sizes
    ]
    return {'modes': found, 'warm': 0}

  @torch.no_grad()
  def rollout(self, path: str, mode: dict, seed: int) -> dict:
    """Samples all rows of a case once; returns seconds and useful tokens."""
    case = np.load(path)
    lengths, prompts = case['lengths'], case['prompts']
    group = len(lengths) // len(prompts)
    rows = torch.tensor(prompts).repeat_interleave(group, 0)
    torch.manual_seed(seed)
    paged = mode.get('paged', False)
    sample = self._continuous if paged else self._generate
    with worker.clock() as seconds:
      counts = sample(rows, lengths, mode)
    if (np.minimum(counts, lengths) != lengths).any():
      raise RuntimeError(f'rows of {counts} tokens in place of {lengths}')
    return {'seconds': seconds[0], 'tokens': int(lengths.sum())}

  def _config(self, longest, **more):
    # What GRPOTrainer sets, and no token that would end a row.
    return GenerationConfig(
      max_new_tokens=int(longest),
      do_sample=True,
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      pad_token_id=0,
      disable_compile=True,
      **more,
    )

  def _generate(self, rows, lengths, mode) -> np.ndarray:
    """Each batch runs to its longest row: no row can leave it before."""
    counts = []
    kind = mode.get('cache_implementation')
    for part in worker.waves(len(rows), mode['batch']):
      found = self.model.generate(
        input_ids=rows[part],
        attention_mask=torch.ones_like(rows[part]),
        generation_config=self._config(
          lengths[part].max(), cache_implementation=kind
        ),
      )
      counts += [found.shape[1] - rows.shape[1]] * len(found)
    return np.array(counts)

  def _continuous(self, rows, lengths, mode) -> np.ndarray:
    """`generate_batch`, with a number of tokens for each request."""
    batch, columns = mode['batch'], rows.shape[1]
    pages = -(-(columns + int(lengths.max())) // PAGE)
    config = ContinuousBatchingConfig(
      page_size=PAGE,
      num_blocks=batch * pages,
      max_batch_tokens=max(batch, 256),
      max_requests_per_batch=batch,
    )
    manager = self.model.continuous_batching_context_manager(
      generation_config=self._config(lengths.max(), eos_token_id=-1),
      continuous_batching_config=config,
      block=True,
      timeout=5,
    )
    counts = {}
    flops = 2 * sum(p.numel() for p in self.model.parameters())
    silence = SILENCE_S + int(lengths.sum()) * flops / _LEAST_RATE
    heard = time.monotonic()
    with manager as running:
      for i, row in enumerate(rows.tolist()):
        running.add_request(row, str(i), max_new_tokens=int(lengths[i]))
      while len(counts) < len(rows):
        result = running.get_result(timeout=1)
        if result is not None and result.is_finished():
          counts[int(result.request_id)] = len(result.generated_tokens)
          heard = time.monotonic()
        elif result is None and not running.is_running():
          raise RuntimeError('continuous batching stopped')
        elif time.monotonic() - heard > silence:
          raise RuntimeError(f'nothing was finished in {silence:.0f} s')
    return np.array([counts[i] for i in range(len(rows))])

  def update_modes(self, rows: int) -> dict:
    """Returns the ways to train on so many rows."""
    del rows
    plain = {'name': 'whole batch', 'checkpointing': False}
    saving = {'name': 'gradient checkpointing', 'checkpointing': True}
    return {'modes': [plain, saving], 'warm': 1}

  def update(self, path: str, mode: dict, fresh: bool) -> dict:
    """Takes one optimizer step on a case; returns seconds, loss and tokens."""
    if fresh:
      self.trainer = self._trainer(mode)
    inputs = _inputs(np.load(path))
    trainer, model = self.trainer, self.model
    with worker.clock() as seconds:
      loss = trainer.training_step(model, inputs, None)
      trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
      trainer.optimizer.step()
      model.zero_grad()
      loss = loss.item()
    tokens = inputs['prompt_mask'].sum() + inputs['completion_mask'].sum()
    return {'seconds': seconds[0], 'loss': loss, 'tokens': int(tokens)}

  def memory(self, path: str, mode: dict) -> dict:
    """Returns the most that one step holds beside what was loaded, MB."""
    before = worker.resident_mb()
    self.update(path, mode, True)
    worker.reset_peak()
    self.update(path, mode, False)
    return {'peak_mb': worker.peak_mb() - before}

  def _trainer(self, mode):
    """Returns a GRPOTrainer that takes its batch as it is given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
      self.folder, dtype=torch.float32
    )
    self.model = model
    words = {str(i): i for i in range(8)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, '0'))
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=made, pad_token='0', eos_token='1'
    )
    folder = tempfile.mkdtemp()
    arguments = trl.GRPOConfig(
      output_dir=folder,
      per_device_train_batch_size=8,
      num_generations=8,
      max_completion_length=256,
      loss_type='grpo',
      beta=0.0,
      epsilon=0.2,
      temperature=1.0,
      learning_rate=1e-6,
      max_grad_norm=1.0,
      bf16=False,
      use_cpu=True,
      gradient_checkpointing=mode['checkpointing'],
      report_to='none',
    )
    trainer = trl.GRPOTrainer(
      model=model,
      reward_funcs=lambda completions, **_: [0.0] * len(completions),
      args=arguments,
      train_dataset=datasets.Dataset.from_list([{'prompt': '3'}] * 8),
      processing_class=tokenizer,
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    trainer.current_gradient_accumulation_steps = 1
    # The batch is sampled and scored already.
    trainer._prepare_inputs = lambda inputs: inputs
    return trainer


def _inputs(case) -> dict:
  """Returns the batch as GRPOTrainer's loss reads it."""
  tokens, mask = torch.tensor(case['tokens']).long(), torch.tensor(case['mask'])
  prompt = int(case['mask'].argmax(1).max())
  return {
    'prompt_ids': tokens[:, :prompt],
    'prompt_mask': torch.ones_like(tokens[:, :prompt]),
    'completion_ids': tokens[:, prompt:],
    'completion_mask': mask[:, prompt:].long(),
    'advantages': torch.tensor(case['advantages']),
    'old_per_token_logps': torch.tensor(case['behavior_log_probs'])[:, prompt:],
    'num_items_in_batch': mask.sum(),
  }


if __name__ == '__main__':
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  transformers.logging.set_verbosity_error()
  worker.serve(Engine())
