"""The colours of every chart."""

COLOURS = {
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "orange": "#E69F00",
    "yellow": "#F0E442",
    "purple": "#CC79A7",
    "grey": "#999999",
}
"""Okabe and Ito's, which colour-blind readers can tell apart."""
