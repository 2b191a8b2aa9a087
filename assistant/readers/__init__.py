"""One file per vendor format; each turns tag bytes or side-car text into a `Record`, and none of them touches pixels.

`tiff.py`, `raster.py` and `rosettasciio.py` decode pixels; `banner.py` finds the burnt-in info bar.
"""
