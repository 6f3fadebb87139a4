//! Owns the simulated world around the sequence and the flusher: brokers that append, refuse,
//! stall and answer late, and a checker of the contract that knows nothing of the code under
//! test. Built for tests only.
//!
//! The explorer of `sequence::tests` walks every state at small sizes over [`brokers`] and
//! [`checker`]. [`schedule`] drives the very flusher, keeper, lanes and log over them, with a
//! clock of its own and storage in memory, by a seed.

pub(crate) mod brokers;
pub(crate) mod checker;
mod coverage;
mod machine;
mod rng;
mod schedule;
mod sink;
mod tests;
