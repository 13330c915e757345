"""Slow literal implementations that several tests compare with."""
import math


def literal_bilinear(small, height, width):
    """Bilinear interpolation with pixel centres at half integers, pixel by pixel."""
    h, w = len(small), len(small[0])
    out = []
    for i in range(height):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        y0 = math.floor(y)
        y1, fy = min(y0 + 1, h - 1), y - y0
        row = []
        for j in range(width):
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            x0 = math.floor(x)
            x1, fx = min(x0 + 1, w - 1), x - x0
            row.append((small[y0][x0] * (1 - fx) + small[y0][x1] * fx) * (1 - fy)
                       + (small[y1][x0] * (1 - fx) + small[y1][x1] * fx) * fy)
        out.append(row)
    return out
