//! Owns how our threads start: named, deaf to signals, and with panics caught at the top.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// Starts `body` on a thread called `name`. Signals meant for the process never interrupt it;
/// a panic ends it and is handed to `on_panic` as text.
///
/// # Errors
/// When the system has no thread to give.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
    on_panic: impl FnOnce(String) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        block_signals();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            on_panic(panic_text(&*panic));
        }
    })
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

/// Blocks every signal that another thread can take instead. Those that a fault raises in this
/// thread stay open, so that a guard or a crash handler of the application still sees them.
fn block_signals() {
    #[cfg(not(miri))]
    // SAFETY: `set` is a plain value that sigfillset initialises before it is read; all five
    // calls take valid pointers and have no other precondition.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        for fault in [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigdelset(&mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_panic_is_caught_and_told() {
        let (tx, rx) = channel();
        let t = spawn("t", || panic!("boom {}", 1), move |text| tx.send(text).unwrap()).unwrap();
        t.join().unwrap();
        assert_eq!(rx.recv().unwrap(), "boom 1");
    }
}
