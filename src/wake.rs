//! Owns the one primitive on which the flusher waits: an eventfd that librdkafka's report
//! queue, a waiting receipt, `flush`, `sync_now` and `close` can signal. `send` never does.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A handle that wakes the flusher; cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// A new, unsignalled waker.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker { fd: Arc::new(fd) })
    }

    /// Makes the current or the next [`Waker::wait`] return.
    pub fn wake(&self) {
        // The only possible failure is a full counter, and then the waiter is awake anyway.
        let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
    }

    /// Waits until woken or until `timeout_ns` has passed; true when woken.
    pub fn wait(&self, timeout_ns: u64) -> bool {
        let timeout = Timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as i64,
            tv_nsec: (timeout_ns % 1_000_000_000) as i64,
        };
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&timeout)), Ok(n) if n > 0) {
            return false;
        }
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&*self.fd, &mut count);
        true
    }

    /// The descriptor, for librdkafka to write 8 bytes (the number 1, native order) to. It
    /// stays open as long as this waker or a clone of it lives.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_wait_is_not_lost_and_counts_once() {
        let w = Waker::new().unwrap();
        assert!(!w.wait(0));
        w.wake();
        w.wake();
        assert!(w.wait(1_000_000_000));
        assert!(!w.wait(1_000));
    }
}
