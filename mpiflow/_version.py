"""The version and the commit, alone, so that whoever needs them imports nothing else.

Both come from git when the package is built (setuptools-scm, which writes _build.py): a tag v1.2.3
is the version 1.2.3, later commits are 1.2.4.dev5+g1234567.
"""

try:
    from mpiflow._build import __version__ as __version__
    from mpiflow._build import commit_id as _commit
except ImportError:  # a source tree that nothing was installed from
    __version__, _commit = "0+source", None

#: Commit of an installed package, short, or "unknown".
COMMIT = str(_commit or "unknown").removeprefix("g")
