"""Training of priors: flows and generators, presets, model cards."""
