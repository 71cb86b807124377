"""Colors that people with any color vision tell apart, and the markers and dashes that tell runs apart too."""

from __future__ import annotations

#: Okabe & Ito (2008), "Color universal design"; its yellow comes last, since it is faint on white.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6E00")
RUN_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK = "#1f2328"
MUTED = "#6e7781"
BAND = "#8c959f"
HOLE = "#d0d7de"
#: Perceptually even, and the same to every color vision (Smith & van der Walt, matplotlib 1.5).
SURFACE_MAP = "viridis"

#: The marker names that Plotly gives to RUN_MARKERS.
PLOTLY_MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
PLOTLY_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
