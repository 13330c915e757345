"""Registers ShuffleNetV2, and `focus_<name>` for every timm model that classifies, when it is imported."""
from . import shufflenetv2
from .registry import FOCUS_ARGS, create_focus_net, register_focus_models
from .shufflenetv2 import *  # noqa: F403  as timm's own packages of models do

register_focus_models()
