"""Quantities of one training step: norms of gradients and updates, the noise scale, conflicts, the rank of embeddings.

The mathematics alone, on tensors, without host synchronization (but for `conflict.py`); when they are measured is for
landscape.probes to say.
"""
