"""Benchmarks of this project beside what a user would pick instead."""
