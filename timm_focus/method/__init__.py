"""The method of "See More for Scene", section 4, in four short files: cam, erase, focus_net, loss."""
from .cam import class_activation_map, class_weights, mean_activation_map, normalize_map
from .erase import erase, erased_share, keep_mask, keep_mask_like, resize_map
from .focus_net import CamHead, FocusNet, FocusOutput, default_stage, export_backbone, find_stage
from .loss import FocusLoss, attention_mining, kl_consistency
