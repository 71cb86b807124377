"""Which units of a model may change places, and which of another state's units are the same ones."""
