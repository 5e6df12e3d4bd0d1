//! Watches the whole: tests of clusters of real processes.
