"""Communication, events, logging, files and other small tools shared by all parts."""
