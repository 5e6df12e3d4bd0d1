//! Waiting for a table that a node knows already.
//!
//! ```text
//!   node: not the owner, at epoch 8 ──▶ this core goes by 7 ── wait ──▶ it goes by 8 ──▶ once more, to that table's owner
//!                                       this core goes by 8 or more ──────────────────▶ at once
//! ```
//! A node asks the router before it refuses, and the core that answered it may know a table a moment before this one does.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use milena_net::{grpc::status::Status, task};

use crate::service::Desk;

/// The longest wait: many times what a table takes from the authority to every core.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Returns when this core goes by a table at least as new as that of the node that gave this status. Gives up after
/// [`WAIT_MAX`], or at `deadline`: then the node's table is not ours.
pub(crate) async fn with(desk: &Desk, status: &Status, deadline: Instant) {
    let Some(epoch) = status.owner_epoch() else { return };
    let Some(mut tables) = desk.tables() else { return }; // The router is stopping.
    let mut patience = pin!(task::sleep(WAIT_MAX.min(deadline.saturating_duration_since(Instant::now()))));
    while desk.view.borrow().epoch() < epoch {
        let is_newer = poll_fn(|cx| match tables.poll_changed(cx) {
            Poll::Ready(table) => Poll::Ready(table.is_some()),
            Poll::Pending => patience.as_mut().poll(cx).map(|()| false),
        });
        if !is_newer.await {
            return;
        }
    }
}
