"""Doubles, servers, clocks and files that several folders of tests use."""
