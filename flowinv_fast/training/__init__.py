"""Training of priors.

``trainer.Trainer`` holds what all trainings share, ``config`` what they are told;
``flow.FlowTrainer`` and ``generator.GeneratorTrainer`` build on it. ``presets`` says what is
trained, ``split`` on which images, ``processes`` where. ``card`` writes the model card of a flow
from what ``measure`` finds, and ``commands`` are the commands ``flowinv-fast train`` and
``flowinv-fast card``.
"""
