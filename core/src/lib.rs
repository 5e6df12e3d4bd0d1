//! Milena's cache node, and the operator's tool.
