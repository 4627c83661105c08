"""Configs, one file a run; installed as `meta_rl.configs`.

Each file has `get_config(arg)`, which returns a `ConfigDict` (the commands lock
it); with the argument 'tiny' (`--config=configs/mrt_countdown.py:tiny`) it runs
in seconds.
"""
