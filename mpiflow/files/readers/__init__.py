"""Files of other programs, read frame by frame for ``mpiflow import``.

A reader is a function of a path and of what is :class:`~mpiflow.files.readers.frames.Wanted` of the
file. It yields a :class:`~mpiflow.files.readers.frames.Frame` at a time, so that memory does not
grow with the file, and raises :class:`~mpiflow.files.structure_files.Unfit` with the line, byte or
frame at which a file is at fault. :mod:`mpiflow.files.readers.formats` knows them all.
"""
