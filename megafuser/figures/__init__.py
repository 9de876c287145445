"""Figures for pages that need nothing else: inline SVG, and the colours of specialists."""
