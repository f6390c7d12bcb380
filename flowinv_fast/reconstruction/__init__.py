"""From measurements to images: problems, objectives, strategies, solvers, posterior draws."""
