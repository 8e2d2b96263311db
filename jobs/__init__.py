"""The experiments and the commands, one file each."""
