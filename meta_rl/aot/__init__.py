"""Ahead-of-time planning: what a compiled program needs and takes."""
