"""What every wing stands on: errors, files, weights containers, tensors, the compiled module."""
