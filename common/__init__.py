"""Everything that is not the algorithm: environments, data sets, collection, evaluation, run directories."""
