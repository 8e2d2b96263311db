"""Inject faults into real runs, and check that nothing is lost."""
