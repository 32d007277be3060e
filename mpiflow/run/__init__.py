"""One run: from options to a finished file, stopped and gone on with."""
