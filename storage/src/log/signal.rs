//! How the tasks of one core wake each other: a bell that remembers having been rung.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    task::{Poll, Waker},
};

/// One listens, many ring.
#[derive(Debug, Default)]
pub(super) struct Bell {
    is_rung: Cell<bool>,
    listener: RefCell<Option<Waker>>,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.is_rung.set(true);
        let listener = self.listener.borrow_mut().take();
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// Waits until it is rung, or was since it was last heard.
    pub(super) fn heard(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            if self.is_rung.take() {
                return Poll::Ready(());
            }
            *self.listener.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}
