"""What is trained on, where timm's own data sets do not suffice."""
from .synthetic import SCENES, draw_scene, synthetic_scenes, write_synthetic_scenes
from .transforms import use_simple_crop
