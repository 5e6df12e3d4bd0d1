//! Changes that the store does not have, as a node makes and uploads them.

use std::rc::Rc;

use milena_storage::log::{Change, Debt, Disk, Log};

use super::log_dir::{NOW, entry, key};

/// Puts, or deletes, what the store does not have, and waits until it is durable.
pub(crate) async fn owe(log: &Rc<Log<Disk>>, name: &str, value: Option<&str>) {
    let position = match value {
        Some(value) => Rc::clone(log).put_dirty(key(name), entry(value), None, NOW).await.unwrap(),
        None => Rc::clone(log).delete_dirty(key(name), NOW).await.unwrap(),
    };
    Rc::clone(log).durable(position).await.unwrap();
}

/// The next debt, whose it is, and the value.
pub(crate) async fn give(log: &Rc<Log<Disk>>) -> Option<(Debt, String, Option<String>)> {
    let debt = log.next_debt()?;
    let (key, change) = Rc::clone(log).read_debt(&debt).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let value = match change {
        Change::Put(entry) => Some(text(&entry.value)),
        Change::Delete => None,
    };
    Some((debt, text(key.name()), value))
}
