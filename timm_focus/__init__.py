"""timm_focus: scene classifiers that look at more of the picture, for every timm model.

Importing it registers `focus_<name>` for every timm model that classifies, and ShuffleNetV2, with timm.
"""
from timm_focus.analysis import FocusArea, focus_area
from timm_focus.method import CamHead, FocusLoss, FocusNet, FocusOutput, export_backbone
from timm_focus.models import create_focus_net
from timm_focus.receptive import ReceptiveField, receptive_field
from timm_focus.release import create_from_hub, push_to_hub, save_for_hub
from timm_focus.runs import load_run
from timm_focus.training.task import FocusTask, create_task

__version__ = '0.1.0'

__all__ = [
    'CamHead', 'FocusArea', 'FocusLoss', 'FocusNet', 'FocusOutput', 'FocusTask', 'ReceptiveField', 'create_focus_net',
    'create_from_hub', 'create_task', 'export_backbone', 'focus_area', 'load_run', 'push_to_hub', 'receptive_field',
    'save_for_hub',
]
