"""Counters: how they are declared, the keys and plans behind them, and their values as of a time."""
