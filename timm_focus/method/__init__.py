"""The method of "See More for Scene", section 4, in short files: cam, erase, heads, stage, focus_net, loss, export."""
from .cam import class_activation_map, class_weights, mean_activation_map, normalize_map
from .erase import erase, erased_share, keep_mask, keep_mask_like, resize_map
from .export import export_backbone
from .focus_net import FocusNet, FocusOutput
from .heads import HEADS, CamHead
from .loss import FocusLoss, attention_mining, kl_consistency
from .stage import default_stage, find_stage
