"""What every other package shares: errors, the registry, units, configuration, targets and cost tables."""
