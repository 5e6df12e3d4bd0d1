//! Milena's router: who is asked.
