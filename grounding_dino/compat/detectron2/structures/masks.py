from typing import Any

BitMasks: Any = None
PolygonMasks: Any = None
polygons_to_bitmask: Any = None
