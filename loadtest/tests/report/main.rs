//! Results of load tests and their reports: the schema of the file, and the page as text.

mod page;
mod sample;
mod schema;
