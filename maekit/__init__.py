"""The parts that train.py and analysis.py are made of, one noun per module."""
