"""What is trained on, where timm's own data sets do not suffice."""
from .dataset import SceneDataset, create_dataset
from .images import read_image
from .index import ImageIndex, cached_scan, read_list, scan_folder, subset, write_list
from .places365 import find_places365, read_split
from .transforms import create_scene_transform, use_simple_crop
