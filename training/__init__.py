"""What surrounds the training loop of `train.py`: its settings, its log, and the run folder."""
