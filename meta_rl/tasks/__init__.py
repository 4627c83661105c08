"""Tasks: prompts, accepted answers, verifiers, warm-start traces, datasets."""
