"""Worker of Tunix: its own Llama, its vanilla sampler and its trainer.

Runs in an environment of google-tunix, without meta_rl.
"""

import dataclasses
import importlib.metadata
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import worker
import workload
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import algo_core, common
from tunix.rl import trainer as trainers
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft import peft_trainer

EOS, PAD = 1, 0


class Ids:
  """A tokenizer whose texts are token ids, in digits."""

  def encode(self, text, **_):
    """Returns the ids."""
    return [int(word) for word in text.split()]

  def decode(self, ids, **_):
    """Returns no text: nobody reads it."""
    del ids
    return ''

  def bos_id(self):
    """Returns None: there is none."""

  def eos_id(self):
    """Returns the id of EOS."""
    return EOS

  def pad_id(self):
    """Returns the id of padding."""
    return PAD


class Engine:
  """Tunix with a checkpoint loaded."""

  def load(self, folder: str, threads: int) -> dict:
    """Loads the checkpoint; returns the versions."""
    del threads  # XLA takes all cores that the process may use
    values = json.loads((pathlib.Path(folder) / 'config.json').read_text())
    self.config = llama.ModelConfig(
      num_layers=values['num_hidden_layers'],
      vocab_size=values['vocab_size'],
      embed_dim=values['hidden_size'],
      hidden_dim=values['intermediate_size'],
      num_heads=values['num_attention_heads'],
      head_dim=values['head_dim'],
      num_kv_heads=values['num_key_value_heads'],
      rope_theta=values['rope_parameters']['rope_theta'],
      norm_eps=values['rms_norm_eps'],
      weight_tying=values['tie_word_embeddings'],
    )
    self.folder, self.samplers = folder, {}
    self.model = self._read(self.config)
    names = ('google-tunix', 'jax', 'flax')
    state = jax.tree.leaves(nnx.state(self.model, nnx.Param))
    return {
      'versions': {n: importlib.metadata.version(n) for n in names},
      'parameters': sum(x.size for x in state),
      'loaded_mb': worker.resident_mb(),
    }

  def _read(self, config):
    return llama_params.create_model_from_safe_tensors(
      self.folder, config, dtype=jnp.float32
    )

  def logits(self, tokens: list[int], path: str):
    """Writes the logits f32[T,V] of one row of tokens."""
    tokens = jnp.array([tokens])
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    found, _ = self.model(tokens, jnp.arange(length)[None], None, causal)
    np.save(path, np.asarray(found[0]))

  def modes(self, rows: int, batch: int) -> dict:
    """Returns the ways to sample so many rows."""
    sizes = workload.at_once(rows, batch)
    modes = [{'name': f'{n} rows', 'batch': n} for n in sizes]
    return {'modes': modes, 'warm': 1}

  def rollout(self, path: str, mode: dict, seed: int) -> dict:
    """Samples all rows of a case once; returns seconds and useful tokens.

    The sampler's loop ends when the last row of a batch does: that others end
    before saves it nothing, so no row is ended.
    """
    case = np.load(path)
    lengths, prompts = case['lengths'], case['prompts']
    group = len(lengths) // len(prompts)
    texts = [' '.join(map(str, row)) for row in prompts for _ in range(group)]
    room = prompts.shape[1] + int(lengths.max())
    cache = CacheConfig(
      cache_size=room,
      num_layers=self.config.num_layers,
      num_kv_heads=self.config.num_kv_heads,
      head_dim=self.config.head_dim,
    )
    if room not in self.samplers:
      self.samplers[room] = Sampler(self.model, Ids(), cache)
    sampler = self.samplers[room]
    counts = []
    with worker.clock() as seconds:
      for i, part in enumerate(worker.waves(len(texts), mode['batch'])):
        found = sampler(
          texts[part],
          max_generation_steps=int(lengths[part].max()),
          max_prompt_length=prompts.shape[1],
          # An id outside the vocabulary: no row ends by chance.
          eos_tokens=[self.config.vocab_size],
          temperature=1.0,
          top_p=1.0,
          seed=seed + i,
        )
        counts += [len(row) for row in found.tokens]
    if (np.minimum(counts, lengths) != lengths).any():
      raise RuntimeError(f'rows of {counts} tokens in place of {lengths}')
    return {'seconds': seconds[0], 'tokens': int(lengths.sum())}

  def update_modes(self, rows: int) -> dict:
    """Returns the ways to train on so many rows."""
    del rows
    plain = {'name': 'whole batch', 'remat': 'NONE'}
    saving = {'name': 'remat of layers', 'remat': 'DECODER'}
    # Compiled again for the types that the first step gives back.
    return {'modes': [plain, saving], 'warm': 2}

  def update(self, path: str, mode: dict, fresh: bool) -> dict:
    """Takes one optimizer step on a case; returns seconds, loss and tokens."""
    if fresh:
      self.step = self._step(mode)
    case = np.load(path)
    example = _example(case)
    with worker.clock() as seconds:
      loss, _, norm = self.step(example)
      loss = float(jax.block_until_ready((loss, norm, self._weights()))[0])
    tokens = (example.prompt_mask.sum() + case['mask'].sum()).item()
    return {'seconds': seconds[0], 'loss': loss, 'tokens': tokens}

  def memory(self, path: str, mode: dict) -> dict:
    """Returns the most that one step holds beside what was loaded, MB."""
    before = worker.resident_mb()
    self.update(path, mode, True)
    worker.reset_peak()
    self.update(path, mode, False)
    return {'peak_mb': worker.peak_mb() - before}

  def _weights(self):
    return jax.tree.leaves(nnx.state(self.model, nnx.Param))

  def _step(self, mode):
    """Returns the train step as GRPOLearner's trainer compiles it."""
    remat = llama.RematConfig[mode['remat']]
    config = dataclasses.replace(self.config, remat_config=remat)
    self.samplers = {}
    self.model = self._read(config)
    algorithm = GRPOConfig(
      num_generations=8,
      beta=0.0,
      epsilon=0.2,
      loss_agg_mode='sequence-mean-token-mean',
    )
    algorithm.temperature = 1.0
    optimizer = optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0)
    )
    trainer = trainers.Trainer(
      self.model,
      optimizer,
      peft_trainer.TrainingConfig(eval_every_n_steps=1000, max_steps=1000),
      custom_checkpoint_metadata_fn=dict,
    )
    trainer.with_loss_fn(
      lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
        model, train_example, algo_config, pad_id=PAD, eos_id=EOS
      ),
      has_aux=True,
    )
    trainer.with_gen_model_input_fn(
      lambda x: {'train_example': x, 'algo_config': algorithm}
    )
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    return step


def _example(case) -> common.TrainExample:
  """Returns the batch as Tunix's loss reads it."""
  prompt = int(case['mask'].argmax(1).max())
  tokens = case['tokens']
  return common.TrainExample(
    prompt_ids=jnp.array(tokens[:, :prompt]),
    prompt_mask=jnp.ones((len(tokens), prompt), bool),
    completion_ids=jnp.array(tokens[:, prompt:]),
    completion_mask=jnp.array(case['mask'][:, prompt:]),
    advantages=jnp.array(case['advantages']),
    ref_per_token_logps=None,
    old_per_token_logps=jnp.array(case['behavior_log_probs'][:, prompt:]),
  )


if __name__ == '__main__':
  worker.serve(Engine())
