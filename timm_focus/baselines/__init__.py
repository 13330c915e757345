"""The methods that the paper compares with, and MaskSub."""
from .acol import ACoL, AcolNet, create_acol
from .adl import adl_modules, drop_attention, insert_adl
from .has import HideAndSeek, apply_hiding, hide_patches
from .maps import trace_maps
from .masksub import MaskSub, MaskSubLoss
