"""meta_rl: meta reinforcement fine-tuning of test-time compute, in JAX."""

__version__ = '0.1.0'
