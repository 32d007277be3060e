"""Any spin rule made to run: what the Potts and Blume-Capel models and rules of others share."""
