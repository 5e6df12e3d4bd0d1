//! Files that glommio's ring reads and writes.
