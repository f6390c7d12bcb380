"""What bench/reliability.py attacks the package with, one module to a kind of attack."""
