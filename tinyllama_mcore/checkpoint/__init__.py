"""Level 4: one layout-free checkpoint format: save, load, verify."""
