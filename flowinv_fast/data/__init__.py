"""Images and recordings in and out: files, arrays, folders; shipped weights and test images."""

from .images import image_grid, load_images, sample_images, save_png, to_picture
from .recordings import load_recordings
from .sources import Crops, Stored

__all__ = [
    "Crops",
    "Stored",
    "image_grid",
    "load_images",
    "load_recordings",
    "sample_images",
    "save_png",
    "to_picture",
]
