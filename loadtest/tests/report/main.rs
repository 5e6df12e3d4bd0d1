//! Results of load tests and their reports: the schema of the file, the page as text, the page as a browser shows it.

mod browser;
mod page;
mod sample;
mod schema;
mod whole;
