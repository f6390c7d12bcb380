"""Images in and out: IDX files, arrays, folders; the shipped weights and test images."""

from .images import image_grid, load_images, save_png

__all__ = ["image_grid", "load_images", "save_png"]
