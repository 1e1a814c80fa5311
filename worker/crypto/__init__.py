"""How a secret rests in the database, and who can read it there.

What this protects: a dump, a backup or a replica of the database, read without this installation's key, gives
away no value. Each installation has a key of its own, so one installation's key opens no other's rows.

What it does not protect, and why we say so:

- names, scopes, dates and the length of each value are in the clear, because people list and sort them;
- version 0 is plaintext that was written before there was a key; it protects nothing until it is written anew;
- a version 1 blob is not bound to its row (the platform's own readers give no additional data), so somebody who
  can *write* the database can put one row's blob into another row, or an older blob back;
- a wrong key and changed bytes look the same in version 1, because nothing but the authentication tag speaks;
- whoever controls this process or its host has the key and everything under it; Python cannot wipe memory;
- one key seals at most 2^32 values with random nonces; an installation stays far below that.

Readable for ever: version 0 (bytes as they are) and version 1 (AES-256-GCM under the static key). Written: 1 only.
The column `encryption_version` decides, never the first byte: 1 in 256 version 1 blobs begins with 0x02 by chance.

    wire.py      the bytes of a blob: bounds, no cryptography
    envelope.py  seal and open one payload
    keyring.py   the key: read, made once outside production, never shown
"""
