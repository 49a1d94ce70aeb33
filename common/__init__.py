"""Everything that is not the algorithm: environments, data sets, collection, evaluation, run directories."""

import gc

# Imports and traces leave millions of objects that stay. Looking for garbage among them took a fifth of a start.
gc.set_threshold(100_000)
