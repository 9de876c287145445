"""Figures for pages that need nothing else: inline SVG, and the colours of specialists.

What the figures show is `report.plots` and `data.statistics_page`.
"""
