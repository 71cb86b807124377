"""The recorder inside other people's training loops: Lightning, Transformers, Accelerate.

One module for each library, imported by its own name (`landscape.probes.integrations.lightning`), so that nothing asks
for a library that isn't used.
"""
