//! (kafka)
