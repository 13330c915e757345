"""What the paper compares with."""
from .has import HideAndSeek, apply_hiding, hide_patches
