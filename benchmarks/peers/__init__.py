"""What the benchmarks against Tunix and TRL share.

`engines` starts a worker for each, `worker` and `with_*` are what runs in it,
`workload` is what all are given, `compare` puts their times side by side.
"""
