"""The operating system and the machine: files, locks, signals, devices, progress display."""
