//! Tasks and timers of a core, so that the packages above need not know which runtime it is.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Runs `future` on this core beside what runs already, until it ends or the core's own future does. For what lives
/// long: spawning takes a lock that all cores share.
///
/// # Panics
/// Outside a core.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(future).detach();
}

/// Waits for `duration`, to about a millisecond.
///
/// # Panics
/// Outside a core.
pub async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// Waits until `due`; not at all if it has passed.
///
/// # Panics
/// Outside a core.
pub async fn sleep_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        sleep(left).await;
    }
}
