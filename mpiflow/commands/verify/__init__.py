"""``mpiflow verify``: whether files are what they should be, down to the physics in them.

=============  ===========================================================================
manifest       size and sha256 are those of ``manifest.json``, where the file has an entry
structure      dimensions, types, attributes; times finite and increasing; equal lengths
checksums      every chunk of every dataset is read
values         finite, in range, and such as a state can have
physics        sums over blocks and over spins are the total, exactly; energies follow from
               sums; atoms are conserved and order parameters follow from bonds; means of
               predicted blocks are the magnetization, and those of spins that flip are such;
               as many exact flips as the magnetization needs; means of profiles;
               fractions of states are of whole sites, and give what the rule makes of them
=============  ===========================================================================

Large fields are read in pieces of whole chunks: memory does not grow with the file.
"""

from mpiflow.commands.verify.files import Finding as Finding
from mpiflow.commands.verify.files import verify as verify
from mpiflow.commands.verify.files import verify_file as verify_file
