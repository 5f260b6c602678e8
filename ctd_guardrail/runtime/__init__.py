"""Objects that a process holds once: the I/O thread, HTTP connections, files, locks, the decision cache. Internal."""
