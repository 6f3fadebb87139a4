//! The one switch between std's atomics and loom's. Nothing else imports atomics.

#[cfg(loom)]
#[allow(unused_imports)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
#[allow(unused_imports)]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// For statics and for words in mapped memory: std's in every build, since loom's atomics can't
/// be made in a `const` nor laid over memory. No model depends on what they hold.
#[allow(unused_imports)]
pub(crate) use std::sync::atomic::{AtomicU32 as RawAtomicU32, AtomicU64 as StaticAtomicU64};
