"""Data sets that timm does not read by itself."""
from .dataset import SceneDataset, create_dataset, open_images
from .images import read_image
from .index import ImageIndex, cached_scan, list_images, read_list, scan_folder, subset, write_list
from .places365 import find_places365, read_split
from .transforms import use_simple_crop
