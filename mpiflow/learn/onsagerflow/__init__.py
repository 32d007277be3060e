"""OnsagerFlow: field equations that keep the fluctuation-dissipation theorem."""
