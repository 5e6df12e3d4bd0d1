//! Memory, log and object store: how a core of Milena remembers.
