"""What happens when: devices, copy-before-write, jobs, limits, exports and sinks."""
