"""Images in and out: IDX files, arrays, folders; the shipped weights and test images."""

from .images import image_grid, load_images, sample_images, save_png, to_picture
from .sources import Crops, Stored

__all__ = [
    "Crops",
    "Stored",
    "image_grid",
    "load_images",
    "sample_images",
    "save_png",
    "to_picture",
]
