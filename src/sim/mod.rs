//! Owns the simulated world around the sequence and the flusher: brokers that append, refuse,
//! stall and answer late, and a checker of the contract that knows nothing of the code under
//! test. Built for tests only.

pub(crate) mod brokers;
pub(crate) mod checker;
