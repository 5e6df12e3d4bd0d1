//! Milena's router: who is asked.

pub mod members;
