//! Results of load tests and their reports: the page as text.

mod page;
mod sample;
