"""Figures and the HTML report, made from archives alone: the only place that draws. No torch here."""
