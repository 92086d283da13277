"""Weights out: a run's network as other programs read it, with a card that says what it is. python -m maekit.export --help"""
