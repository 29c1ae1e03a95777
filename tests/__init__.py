"""The tests; the directories mirror the package."""
