"""Receptive field of any network. field.py finds it by running the network on boxes of pixels instead of numbers."""
from .field import ReceptiveField, receptive_field
