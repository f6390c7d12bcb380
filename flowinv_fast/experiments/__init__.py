"""The paper's tasks on real images."""
