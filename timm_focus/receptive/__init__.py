"""Receptive field of any network, found by running it on boxes of pixels instead of numbers."""
from .field import ReceptiveField, receptive_field
