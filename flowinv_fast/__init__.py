"""Image inverse problems with a normalizing-flow prior and a normalizing-flow noise model."""
