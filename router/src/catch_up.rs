//! Waiting for a table that a node knows already.
//!
//! ```text
//!   node: not the owner, at epoch 8 ──▶ this core goes by 7 ── wait ──▶ it goes by 8 ──▶ once more, to that table's owner
//!                                       this core goes by 8 or more ──────────────────▶ at once
//! ```
//! A node asks the router before it refuses, and the core that answered it may know a table a moment before this one does.

use std::time::{Duration, Instant};

use milena_net::{grpc::status::Status, task};

use crate::service::Desk;

/// The longest wait: many times what a table takes from the authority to every core.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Returns when this core goes by a table at least as new as that of the node that gave this status. Gives up after
/// [`WAIT_MAX`], or at `deadline`: then the node's table is not ours.
pub(crate) async fn with(desk: &Desk, status: &Status, deadline: Instant) {
    let Some(epoch) = status.owner_epoch() else { return };
    let until = deadline.min(Instant::now() + WAIT_MAX);
    while desk.view.borrow().epoch() < epoch && Instant::now() < until {
        task::sleep(LOOK_INTERVAL).await;
    }
}
