"""The built-in drawn scenes. Drawing code is imported only when a picture is drawn; this file holds the name alone."""

__all__ = ['SYNTHETIC']

SYNTHETIC = 'synthetic'  # the name of the drawn scenes as --dataset
