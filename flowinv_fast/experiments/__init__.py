"""The paper's experiments on real images: tasks, methods, runs, reports, and the demo."""
