"""What drivers share: protocols, tables, figures."""
