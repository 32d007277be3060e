"""The order of an alloy: data, network and model."""
