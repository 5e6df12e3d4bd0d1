//! Flow control windows: arithmetic that must not wrap, kept in one place (RFC 9113, section 6.9).

/// What may still be sent. Negative after the peer has made its initial window smaller (section 6.9.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendWindow(i32);

/// A window was raised over 2^31 - 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl SendWindow {
    pub(crate) fn new(bytes: u32) -> Self {
        Self(i32::try_from(bytes).expect("checked when the setting was read"))
    }

    /// Bytes that may be sent now.
    pub(crate) fn available_bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        assert!(bytes <= self.available_bytes());
        self.0 -= i32::try_from(bytes).expect("no more than available");
    }

    pub(crate) fn raise(&mut self, bytes: u32) -> Result<(), Overflow> {
        self.shift(i64::from(bytes))
    }

    /// Moves the window by the difference of two initial windows.
    pub(crate) fn shift(&mut self, difference: i64) -> Result<(), Overflow> {
        self.0 = i32::try_from(i64::from(self.0) + difference).map_err(|_| Overflow)?;
        Ok(())
    }
}

/// What the peer may still send, and what we have taken in without telling it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiveWindow {
    size_bytes: u32,
    available_bytes: u32,
    taken_bytes: u32,
    /// What comes in counts as taken only when [`ReceiveWindow::take`] says so.
    is_held: bool,
}

impl ReceiveWindow {
    pub(crate) fn new(size_bytes: u32) -> Self {
        Self { size_bytes, available_bytes: size_bytes, taken_bytes: 0, is_held: false }
    }

    /// The peer has sent `bytes`.
    pub(crate) fn received(&mut self, bytes: usize) -> Result<(), Overflow> {
        let bytes = u32::try_from(bytes).map_err(|_| Overflow)?;
        self.available_bytes = self.available_bytes.checked_sub(bytes).ok_or(Overflow)?;
        if !self.is_held {
            self.taken_bytes += bytes;
        }
        Ok(())
    }

    /// From now on the peer is told only of what was [taken](ReceiveWindow::take).
    pub(crate) fn hold(&mut self) {
        self.is_held = true;
    }

    /// `bytes` of what has come in have been passed on: of importance only while the window is held.
    pub(crate) fn take(&mut self, bytes: usize) {
        if self.is_held {
            self.taken_bytes += u32::try_from(bytes).expect("no more than has come in");
        }
    }

    /// The update to send, if it is worth a frame: at half the window, so that a peer never waits for one.
    pub(crate) fn update(&mut self) -> Option<u32> {
        if self.taken_bytes < self.size_bytes.div_ceil(2) {
            return None;
        }
        let update = std::mem::take(&mut self.taken_bytes);
        self.available_bytes += update;
        Some(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_become_negative_but_never_pass_its_maximum() {
        let mut window = SendWindow::new(100);
        window.sent(60);
        window.shift(-100).unwrap();
        assert_eq!(window.available_bytes(), 0);
        window.raise(61).unwrap();
        assert_eq!(window.available_bytes(), 1);
        assert_eq!(window.raise(i32::MAX as u32), Err(Overflow));
    }

    #[test]
    fn a_window_that_is_held_opens_only_as_what_came_in_is_passed_on() {
        let mut window = ReceiveWindow::new(1000);
        window.received(300).unwrap();
        window.hold();
        window.received(700).unwrap();
        assert_eq!(window.update(), None);
        assert_eq!(window.received(1), Err(Overflow));
        window.take(200);
        assert_eq!(window.update(), Some(500));
        window.received(500).unwrap();
        assert_eq!(window.update(), None);
    }

    #[test]
    fn updates_are_batched_and_add_up_to_what_was_taken() {
        let mut window = ReceiveWindow::new(1000);
        window.received(499).unwrap();
        assert_eq!(window.update(), None);
        window.received(1).unwrap();
        assert_eq!(window.update(), Some(500));
        assert_eq!(window.update(), None);
        window.received(1000).unwrap();
        assert_eq!(window.received(1), Err(Overflow));
    }
}
