"""Sweeps: plan trials, run them on Ray, and report their results."""
